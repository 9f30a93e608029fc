//! Pods, as the kubelet runs them through CRI.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tonic::Request;
use tonic::transport::Channel;

use crate::PATIENCE;
use crate::api::{Api, cri, rpc_message};
use crate::app::App;
use crate::container::Exit;
use crate::node::Node;
use crate::sleeper::Sleeper;
use crate::tools::Runtime;

type Service = cri::runtime_service_client::RuntimeServiceClient<Channel>;
type Images = cri::image_service_client::ImageServiceClient<Channel>;

macro_rules! call {
    ($api:expr, $client:ty, $method:ident, $message:expr) => {{
        let message = $message;
        let channel = $api.channel();
        Api::wait(concat!("call ", stringify!($method)), async move {
            <$client>::new(channel).$method(Request::new(message)).await
        })
    }};
}

/// Waits until CRI has come up: the daemon listens before, and no event tells of it.
pub(crate) fn wait_ready(api: &Api) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let nobody = cri::PodSandboxStatusRequest {
            pod_sandbox_id: "none".to_owned(),
            verbose: false,
        };
        // Else it says that there is no such sandbox.
        let Err(error) = call!(api, Service, pod_sandbox_status, nobody) else {
            return Ok(());
        };
        if !rpc_message(&error).is_some_and(|words| words.contains("not initialized")) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until CRI knows an image. It learns of it by an event of which it makes none itself: it is asked
/// until it does.
pub(crate) fn wait_for_image(api: &Api, reference: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let image = Some(cri::ImageSpec {
            image: reference.to_owned(),
        });
        let answer = call!(api, Images, image_status, cri::ImageStatusRequest { image })?;
        if answer.image.is_some() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("CRI does not know {reference} after {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A container of a pod: what to run, its name, and what the pod's specification says about it.
#[derive(Clone, Debug)]
pub struct Member {
    name: String,
    app: App,
}

impl Member {
    /// Image, arguments, environment, annotations, terminal and memory limit of `app` count; network and
    /// streams are the pod's.
    pub fn new(name: &str, app: App) -> Self {
        Self {
            name: name.into(),
            app,
        }
    }
}

/// A pod sandbox. Dropping it stops and removes it with its containers.
#[derive(Debug)]
pub struct Pod {
    node: Node,
    id: String,
    config: cri::PodSandboxConfig,
    addresses: Vec<IpAddr>,
}

impl Pod {
    pub(crate) fn run(
        node: &Node,
        namespace: &str,
        runtime: Runtime,
        annotations: &[(&str, &str)],
    ) -> Result<Self> {
        let name = node.next_id();
        let logs = node.folder().join("pods").join(&name);
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.clone(),
                uid: format!("uid-{name}"),
                namespace: namespace.into(),
                attempt: 0,
            }),
            hostname: name,
            log_directory: logs.display().to_string(),
            annotations: to_map(annotations.iter().copied()),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: node.cgroup_parent()?,
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let message = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: runtime.handler().into(),
        };
        let id = call!(node.api(), Service, run_pod_sandbox, message)?.pod_sandbox_id;
        let mut pod = Self {
            node: node.clone(),
            id,
            config,
            addresses: Vec::new(),
        };
        pod.addresses = pod.read_addresses()?;
        Ok(pod)
    }

    fn read_addresses(&self) -> Result<Vec<IpAddr>> {
        let message = cri::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        let answer = call!(self.node.api(), Service, pod_sandbox_status, message)?;
        let network = answer
            .status
            .and_then(|status| status.network)
            .context("a sandbox without a network")?;
        [network.ip]
            .into_iter()
            .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
            .map(|ip| ip.parse().with_context(|| format!("address {ip:?}")))
            .collect()
    }

    /// The sandbox's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its addresses: IPv4, then IPv6.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// A port of it, IPv4.
    pub fn address(&self, port: u16) -> Result<SocketAddr> {
        let ip = self.addresses.iter().find(|ip| ip.is_ipv4());
        Ok(SocketAddr::new(*ip.context("no IPv4 address")?, port))
    }

    /// A port of it, IPv6.
    pub fn address6(&self, port: u16) -> Result<SocketAddr> {
        let ip = self.addresses.iter().find(|ip| ip.is_ipv6());
        Ok(SocketAddr::new(*ip.context("no IPv6 address")?, port))
    }

    /// The sleep of the sandbox's own container.
    pub fn sleeper(&self) -> Sleeper {
        Sleeper::new(&self.id, &self.id)
    }

    /// Makes and starts a container in it.
    pub fn start(&self, member: Member) -> Result<PodContainer<'_>> {
        let container = self.create(member)?;
        container.start()?;
        Ok(container)
    }

    /// Makes a container in it.
    pub fn create(&self, member: Member) -> Result<PodContainer<'_>> {
        let Member { name, app } = member;
        self.node.need_cri_image(app.image)?;
        let envs = app.env.iter().filter_map(|pair| pair.split_once('='));
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.clone(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: app.image.reference().into(),
            }),
            command: app.args.clone(),
            envs: envs
                .map(|(key, value)| cri::KeyValue {
                    key: key.into(),
                    value: value.into(),
                })
                .collect(),
            annotations: app.annotations.clone().into_iter().collect(),
            log_path: format!("{name}.log"),
            tty: app.terminal,
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources {
                    memory_limit_in_bytes: app.memory_limit.unwrap_or_default().try_into()?,
                    ..Default::default()
                }),
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                }),
            }),
            ..Default::default()
        };
        let message = cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id = call!(self.node.api(), Service, create_container, message)?.container_id;
        Ok(PodContainer {
            pod: self,
            name,
            id,
        })
    }

    /// Stops its containers and takes its network down.
    pub fn stop(&self) -> Result<()> {
        let pod_sandbox_id = self.id.clone();
        let message = cri::PodSandboxRequest { pod_sandbox_id };
        call!(self.node.api(), Service, stop_pod_sandbox, message).map(drop)
    }
}

impl Drop for Pod {
    /// Best effort: what is left goes when the machine is left.
    fn drop(&mut self) {
        let _ = self.stop();
        let pod_sandbox_id = self.id.clone();
        let message = cri::PodSandboxRequest { pod_sandbox_id };
        let _ = call!(self.node.api(), Service, remove_pod_sandbox, message);
    }
}

/// A container of a pod; goes with the pod.
#[derive(Debug)]
pub struct PodContainer<'a> {
    pod: &'a Pod,
    name: String,
    id: String,
}

impl PodContainer<'_> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its sleep.
    pub fn sleeper(&self) -> Sleeper {
        Sleeper::new(&self.pod.id, &self.id)
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        let container_id = self.id.clone();
        let message = cri::ContainerRequest { container_id };
        call!(self.pod.node.api(), Service, start_container, message).map(drop)
    }

    /// Asks it to end, and makes it end after so many seconds.
    pub fn stop(&self, seconds: i64) -> Result<()> {
        let message = cri::StopContainerRequest {
            container_id: self.id.clone(),
            timeout: seconds,
        };
        call!(self.pod.node.api(), Service, stop_container, message).map(drop)
    }

    /// Runs a process in it to its end; returns how it ended and what it printed.
    pub fn exec(&self, args: &[&str]) -> Result<(Exit, String)> {
        let message = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: args.iter().map(|&arg| arg.to_owned()).collect(),
            timeout: PATIENCE.as_secs().try_into()?,
        };
        let answer = call!(self.pod.node.api(), Service, exec_sync, message)?;
        let status = answer.exit_code.try_into().context("an exit code")?;
        let output = String::from_utf8_lossy(&answer.stdout).into_owned();
        Ok((Exit { status }, output))
    }

    /// Its state in CRI's words, for example `CONTAINER_RUNNING`, and its exit code.
    pub fn status(&self) -> Result<(String, i32)> {
        let message = cri::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        let answer = call!(self.pod.node.api(), Service, container_status, message)?;
        let status = answer.status.context("an answer without a status")?;
        Ok((status.state().as_str_name().to_owned(), status.exit_code))
    }

    /// The log file that the kubelet would read.
    pub fn log(&self) -> Result<String> {
        let folder = std::path::Path::new(&self.pod.config.log_directory);
        let path = folder.join(format!("{}.log", self.name));
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }
}

/// What the kubelet asks for unless the pod's specification does: processes of a pod's containers do not see
/// one another. CRI's own default is that they do.
fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: cri::NamespaceMode::Pod.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
    }
}

fn to_map<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> HashMap<String, String> {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}
