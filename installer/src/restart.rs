//! Restarts containerd through the node's systemd: whichever unit its process belongs to, be it
//! `containerd`, `k3s`, `k3s-agent`, `rke2-server` or `rke2-agent`.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use zbus::Connection;
use zbus::OwnedObjectPath;
use zbus::connection::Builder;

use crate::host::Host;

/// Where systemd is reached.
const BUS: &str = "/run/dbus/system_bus_socket";

/// A server of k3s or rke2 is started once its API answers.
const PATIENCE: Duration = Duration::from_secs(600);

/// It could not be restarted.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// There is no bus here.
    #[error("no systemd to restart containerd with: {}: {source}; say --restart never on a node where others restart it", path.display())]
    NoBus {
        /// Where it would be.
        path: PathBuf,
        /// Why it is none.
        #[source]
        source: io::Error,
    },
    /// systemd did not do what it was asked.
    #[error("systemd: {operation}: {source}")]
    Bus {
        /// What was asked.
        operation: String,
        /// Its answer.
        #[source]
        source: Box<zbus::Error>,
    },
    /// The unit does not come up.
    #[error("systemd: restart {unit}: {result}")]
    Job {
        /// The unit.
        unit: String,
        /// What has become of the job.
        result: String,
    },
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait Unit {
    #[zbus(property)]
    fn id(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
}

/// The unit that runs containerd.
#[derive(Debug)]
pub struct Service {
    connection: Connection,
    unit: OwnedObjectPath,
    /// Its name, such as `containerd.service`.
    pub name: String,
}

impl Service {
    /// The unit of the process `pid`.
    ///
    /// # Errors
    /// When systemd cannot be asked or does not know the process.
    pub async fn of(host: &Host, pid: u32) -> Result<Self, RestartError> {
        let connection = connect(host).await?;
        let failed = |operation: &str| bus(operation.to_owned());
        let manager = ManagerProxy::new(&connection)
            .await
            .map_err(failed("connect"))?;
        let unit = manager
            .get_unit_by_pid(pid)
            .await
            .map_err(bus(format!("the unit of process {pid}")))?;
        let proxy = unit_proxy(&connection, &unit).await?;
        let name = proxy.id().await.map_err(failed("the unit's name"))?;
        Ok(Self {
            connection,
            unit,
            name,
        })
    }

    /// Restarts it and waits until it has started.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&self) -> Result<(), RestartError> {
        let manager = ManagerProxy::new(&self.connection)
            .await
            .map_err(bus("connect".to_owned()))?;
        let unit = unit_proxy(&self.connection, &self.unit).await?;
        let failed = |operation: &str| bus(format!("{operation} {}", self.name));
        // Asked for each time: a value that was kept would be of before.
        let _job = manager
            .restart_unit(&self.name, "replace")
            .await
            .map_err(failed("restart"))?;
        let done = async {
            loop {
                let (job, _) = unit.job().await.map_err(failed("the job of"))?;
                if job == 0 {
                    return unit.active_state().await.map_err(failed("the state of"));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let state = tokio::time::timeout(PATIENCE, done).await;
        let result = match state {
            Ok(Ok(state)) if state == "active" => return Ok(()),
            Ok(Ok(state)) => format!("it is {state}"),
            Ok(Err(error)) => return Err(error),
            Err(_) => format!("it has not started within {PATIENCE:?}"),
        };
        Err(RestartError::Job {
            unit: self.name.clone(),
            result,
        })
    }
}

async fn unit_proxy<'a>(
    connection: &Connection,
    unit: &'a OwnedObjectPath,
) -> Result<UnitProxy<'a>, RestartError> {
    UnitProxy::builder(connection)
        .path(unit)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .map_err(bus("look at a unit".to_owned()))
}

async fn connect(host: &Host) -> Result<Connection, RestartError> {
    let no_bus = |source| RestartError::NoBus {
        path: host.root().join(BUS.trim_start_matches('/')),
        source,
    };
    let seen = host.at(BUS).map_err(no_bus)?;
    let stream = UnixStream::connect(seen).map_err(no_bus)?;
    let connection = Builder::unix_stream(stream).build().await;
    connection.map_err(bus("connect".to_owned()))
}

fn bus(operation: String) -> impl FnOnce(zbus::Error) -> RestartError {
    move |source| RestartError::Bus {
        operation,
        source: Box::new(source),
    }
}
