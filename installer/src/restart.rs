//! Restarts containerd through the node's systemd: whichever unit its process belongs to, be it
//! `containerd`, `k3s`, `k3s-agent`, `rke2-server` or `rke2-agent`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixStream;
use zbus::Connection;
use zbus::connection::Builder;
use zbus::zvariant::OwnedObjectPath;

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
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
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
        let unit = manager(&connection).await?.get_unit_by_pid(pid).await;
        let unit = unit.map_err(bus(format!("the unit of process {pid}")))?;
        let name = unit_proxy(&connection, &unit).await?.id().await;
        Ok(Self {
            name: name.map_err(bus("the unit's name".to_owned()))?,
            connection,
            unit,
        })
    }

    /// The unit of this name.
    ///
    /// # Errors
    /// When systemd cannot be asked or does not know it.
    pub async fn named(host: &Host, name: &str) -> Result<Self, RestartError> {
        let connection = connect(host).await?;
        let unit = manager(&connection).await?.load_unit(name).await;
        Ok(Self {
            unit: unit.map_err(bus(format!("the unit {name}")))?,
            connection,
            name: name.to_owned(),
        })
    }

    /// Restarts it and waits until it has started.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&self) -> Result<(), RestartError> {
        let manager = manager(&self.connection).await?;
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

async fn manager(connection: &Connection) -> Result<ManagerProxy<'_>, RestartError> {
    let manager = ManagerProxy::new(connection).await;
    manager.map_err(bus("connect".to_owned()))
}

async fn unit_proxy<'a>(
    connection: &Connection,
    unit: &'a OwnedObjectPath,
) -> Result<UnitProxy<'a>, RestartError> {
    UnitProxy::builder(connection)
        .path(unit)
        .map_err(bus("look at a unit".to_owned()))?
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
    let stream = UnixStream::connect(seen).await.map_err(no_bus)?;
    let connection = Builder::unix_stream(stream).build().await;
    connection.map_err(bus("connect".to_owned()))
}

fn bus(operation: String) -> impl FnOnce(zbus::Error) -> RestartError {
    move |source| RestartError::Bus {
        operation,
        source: Box::new(source),
    }
}
