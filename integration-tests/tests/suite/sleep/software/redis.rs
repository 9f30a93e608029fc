//! redis with more keys than can be looked at each time.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use podmotion_integration_tests::{Node, Runtime};

use super::resp::Redis;
use super::{VISITS, cycles, server};

const KEYS: usize = 1_000_000;
/// Looked at after each sleep, other ones each time.
const SAMPLE: usize = 1_000;

/// The keys are in one database, what the clients count in another.
pub(super) fn million_keys(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(server(runtime, ["redis-server", "/apps/redis.conf"]))?;
    container
        .stdout()?
        .wait_for("Ready to accept connections")?;
    let address = container.address(6379)?;
    let mut kept = Redis::connect(address)?;
    let mut listener = Redis::connect(address)?;
    listener.command(&["SUBSCRIBE", "news"])?;

    kept.command(&["DEBUG", "POPULATE", &KEYS.to_string()])?;
    let digest = kept.command(&["DEBUG", "DIGEST"])?;
    let run = kept.run_id()?;

    let visits = AtomicU64::new(0);
    let mut rounds = 0;
    cycles(
        &container,
        || {
            (0..VISITS).try_for_each(|_| {
                let mut client = Redis::connect(address)?;
                client.command(&["SELECT", "1"])?;
                client.command(&["INCR", "visits"])?;
                visits.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        },
        || {
            rounds += 1;
            ensure!(kept.command(&["DBSIZE"])? == [KEYS.to_string()]);
            let numbers = (rounds % 97..KEYS).step_by(KEYS / SAMPLE);
            let keys: Vec<_> = numbers.clone().map(|n| format!("key:{n}")).collect();
            let get = ["MGET"].into_iter().chain(keys.iter().map(String::as_str));
            let values: Vec<_> = numbers.map(|n| format!("value:{n}")).collect();
            ensure!(
                kept.command(&get.collect::<Vec<_>>())? == values,
                "values changed"
            );
            let news = format!("round {rounds}");
            kept.command(&["PUBLISH", "news", &news])?;
            ensure!(listener.answer()? == ["message", "news", &news]);
            Ok(())
        },
    )?;
    kept.command(&["SELECT", "1"])?;
    let counted = kept.command(&["GET", "visits"])?;
    ensure!(
        counted == [visits.into_inner().to_string()],
        "{counted:?} visits"
    );
    kept.command(&["DEL", "visits"])?;
    ensure!(
        kept.command(&["DEBUG", "DIGEST"])? == digest,
        "keys changed"
    );
    ensure!(kept.run_id()? == run, "it was started anew");
    Ok(())
}
