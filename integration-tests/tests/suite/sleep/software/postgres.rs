//! PostgreSQL: a process for each connection, memory that all of them share, and signals between them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Depth, Node, PATIENCE, Runtime};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

use super::{VISITS, cycles, server};

const PORT: u16 = 5432;

/// Through every sleep a client holds a transaction that nobody else can see into, a lock, a statement and a
/// temporary table.
pub(super) fn open_transaction(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(server(runtime, ["sh", "-c", start(node.depth())]))?;
    container
        .stderr()?
        .wait_for("database system is ready to accept connections")?;
    let address = container.address(PORT)?;
    let mut writer = Writer::begin(address)?;
    let mut reader = connect(address)?;

    let visits = AtomicI64::new(0);
    cycles(
        &container,
        || {
            (0..VISITS).try_for_each(|_| {
                visit(address)?;
                visits.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        },
        || writer.commit(&mut reader),
    )?;
    let counted = one(&mut reader, "SELECT count(*) FROM visits")?;
    ensure!(counted == visits.into_inner(), "{counted} visits");
    Ok(())
}

/// It does not run as root. Another user's processes are only checkpointed by who has CAP_SYS_RESOURCE, which not every
/// machine gives to the tests: for those it runs as root and does not know.
fn start(depth: Depth) -> &'static str {
    match depth {
        Depth::Light => {
            "exec setpriv --reuid=postgres --regid=postgres --clear-groups \
             /usr/lib/postgresql/15/bin/postgres --config-file=/apps/postgresql.conf"
        }
        Depth::Deep => {
            "NOTROOT=$(id -u postgres) LD_PRELOAD=/apps/notroot.so \
             exec /usr/lib/postgresql/15/bin/postgres --config-file=/apps/postgresql.conf"
        }
    }
}

/// One client of many. The server ends its connection: of a client that says goodbye and goes, a request without an
/// answer would be seen until the server has ended it too.
fn visit(address: SocketAddr) -> Result<()> {
    let mut client = connect(address)?;
    client
        .execute("INSERT INTO visits DEFAULT VALUES", &[])
        .context("count a visit")?;
    let ended = client.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())");
    let ended = ended.err().context("its own process was not ended")?;
    ensure!(
        ended.is_closed() || ended.code() == Some(&SqlState::ADMIN_SHUTDOWN),
        "end of a visit: {ended}"
    );
    Ok(())
}

/// The client whose transaction is open.
struct Writer {
    client: Client,
    insert: postgres::Statement,
    pid: i64,
    rounds: i64,
}

impl Writer {
    fn begin(address: SocketAddr) -> Result<Self> {
        let mut client = connect(address)?;
        client
            .batch_execute(
                "CREATE TABLE visits (number serial PRIMARY KEY);
                 CREATE TABLE rounds (number bigint PRIMARY KEY);
                 CREATE TEMPORARY TABLE mine (number bigint);
                 SELECT pg_advisory_lock(1);",
            )
            .context("make tables")?;
        client.batch_execute("BEGIN").context("begin")?;
        let mut writer = Self {
            insert: client.prepare("INSERT INTO rounds VALUES ($1)")?,
            pid: one(&mut client, "SELECT pg_backend_pid()::bigint")?,
            client,
            rounds: 0,
        };
        writer.insert()?;
        Ok(writer)
    }

    /// Nothing is committed yet.
    fn insert(&mut self) -> Result<()> {
        self.rounds += 1;
        self.client
            .execute(&self.insert, &[&self.rounds])
            .context("insert in a transaction")?;
        self.client
            .execute("INSERT INTO mine VALUES ($1)", &[&self.rounds])
            .context("insert into a temporary table")?;
        Ok(())
    }

    /// Ends the transaction that is open, and begins the next.
    fn commit(&mut self, reader: &mut Client) -> Result<()> {
        const ROUNDS: &str = "SELECT count(*) FROM rounds";
        let Self { client, rounds, .. } = self;
        let rounds = *rounds;
        ensure!(one(client, "SELECT pg_backend_pid()::bigint")? == self.pid);
        ensure!(one(client, ROUNDS)? == rounds, "the writer's rows are gone");
        ensure!(
            one(client, "SELECT count(*) FROM mine")? == rounds,
            "the temporary rows are gone"
        );
        ensure!(
            one(reader, ROUNDS)? == rounds - 1,
            "others see what is not committed"
        );
        ensure!(
            one(reader, "SELECT pg_try_advisory_lock(1)::int::bigint")? == 0,
            "the lock is gone"
        );
        client.batch_execute("COMMIT").context("commit")?;
        ensure!(
            one(reader, ROUNDS)? == rounds,
            "others do not see what is committed"
        );
        client.batch_execute("BEGIN").context("begin")?;
        self.insert()
    }
}

fn connect(address: SocketAddr) -> Result<Client> {
    let mut config = postgres::Config::new();
    config
        .host(&address.ip().to_string())
        .port(address.port())
        .user("postgres")
        .connect_timeout(PATIENCE)
        .tcp_user_timeout(PATIENCE);
    config.connect(NoTls).context("connect to PostgreSQL")
}

/// The one number that a query answers with.
fn one(client: &mut Client, query: &str) -> Result<i64> {
    let row = client.query_one(query, &[]).context(query.to_owned())?;
    Ok(row.try_get(0)?)
}
