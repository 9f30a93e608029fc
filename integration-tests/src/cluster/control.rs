//! The control plane: etcd, API server, controller manager, scheduler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::daemon::Daemon;
use super::network::{ADDRESS, API_PORT, Place, SERVICES};
use super::write;
use crate::PATIENCE;
use crate::machine::run;
use crate::tools::Tools;

const ETCD: &str = "http://127.0.0.1:2379";

/// Who talks to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    Admin,
    Controllers,
    Scheduler,
    Kubelet(Place),
}

impl Identity {
    fn all() -> impl Iterator<Item = Self> {
        [Self::Admin, Self::Controllers, Self::Scheduler]
            .into_iter()
            .chain(Place::ALL.map(Self::Kubelet))
    }

    /// Its name there, and the groups that it is in: the ones of Kubernetes' own default policy.
    fn user(self) -> (String, &'static str) {
        match self {
            Self::Admin => ("admin".into(), "system:masters"),
            Self::Controllers => ("system:kube-controller-manager".into(), ""),
            Self::Scheduler => ("system:kube-scheduler".into(), ""),
            Self::Kubelet(place) => (format!("system:node:{}", place.name()), "system:nodes"),
        }
    }

    /// What it is called in names of files.
    fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Controllers => "controllers",
            Self::Scheduler => "scheduler",
            Self::Kubelet(place) => place.name(),
        }
    }

    /// A machine of its own, whose network nobody else is on: nothing to keep secret.
    fn token(self) -> String {
        format!("token-of-{}", self.name())
    }

    fn file(self) -> String {
        format!("{}.kubeconfig", self.name())
    }
}

/// The running control plane. Ends in the order in which the programs need one another.
#[derive(Debug)]
pub(super) struct Control {
    daemons: Vec<Daemon>,
    folder: PathBuf,
}

impl Control {
    pub(super) fn start(tools: &Tools, folder: &Path) -> Result<Self> {
        let bin = tools.cached("kubernetes/bin")?;
        let mut control = Self {
            daemons: Vec::new(),
            folder: folder.to_owned(),
        };
        let mut etcd = Command::new(tools.cached("etcd/bin/etcd")?);
        etcd.args(["--unsafe-no-fsync", "--data-dir"])
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", ETCD])
            .args(["--advertise-client-urls", ETCD]);
        control.daemon("etcd", etcd)?;
        let key = service_account_key(folder)?;
        let tokens = write(folder.join("tokens.csv"), &tokens())?;
        let mut api = Command::new(bin.join("kube-apiserver"));
        api.arg(format!("--etcd-servers={ETCD}"))
            .arg(format!("--bind-address={ADDRESS}"))
            .arg(format!("--secure-port={API_PORT}"))
            .arg(flag("cert-dir", &folder.join("certificates")))
            .arg(flag("token-auth-file", &tokens))
            .arg("--authorization-mode=Node,RBAC")
            .arg("--allow-privileged=true")
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(flag("service-account-key-file", &key))
            .arg(flag("service-account-signing-key-file", &key))
            .arg("--kubelet-preferred-address-types=InternalIP");
        control.daemon("kube-apiserver", api)?;
        for identity in Identity::all() {
            let config = control.kubeconfig(identity, &control.certificate());
            let config = config.to_string();
            write(folder.join(identity.file()), &config)?;
        }
        control.wait_ready(&bin)?;
        let config = |identity| flag("kubeconfig", &control.config_of(identity));
        let controllers = config(Identity::Controllers);
        let scheduler = config(Identity::Scheduler);
        let mut manager = Command::new(bin.join("kube-controller-manager"));
        manager
            .args([controllers.as_str(), "--leader-elect=false"])
            .arg("--use-service-account-credentials=true")
            .arg(flag("service-account-private-key-file", &key))
            .arg(flag("root-ca-file", &control.certificate()));
        control.daemon("kube-controller-manager", manager)?;
        let mut schedule = Command::new(bin.join("kube-scheduler"));
        schedule.args([scheduler.as_str(), "--leader-elect=false"]);
        control.daemon("kube-scheduler", schedule)?;
        Ok(control)
    }

    /// The file with which one talks to the API server.
    pub(super) fn config_of(&self, identity: Identity) -> PathBuf {
        self.folder.join(identity.file())
    }

    pub(super) fn log_tails(&self) -> String {
        let tails: Vec<_> = self.daemons.iter().map(Daemon::log_tail).collect();
        tails.join("\n")
    }

    fn daemon(&mut self, name: &str, command: Command) -> Result<()> {
        let daemon = Daemon::start(name, &self.folder, None, command)?;
        // The newest ends first.
        self.daemons.insert(0, daemon);
        Ok(())
    }

    /// The API server makes it for itself, with its authority's behind it.
    pub(super) fn certificate(&self) -> PathBuf {
        self.folder.join("certificates/apiserver.crt")
    }

    /// What is in such a file, for somebody who has the API server's certificate at `certificate`.
    pub(super) fn kubeconfig(&self, identity: Identity, certificate: &Path) -> serde_json::Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{ADDRESS}:{API_PORT}"),
                "certificate-authority": certificate,
            }}],
            "users": [{"name": "test", "user": {"token": identity.token()}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
    }

    /// Asks the API server until it says that it is ready: it has no other way of saying so.
    fn wait_ready(&mut self, bin: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let config = flag("kubeconfig", &self.config_of(Identity::Admin));
        loop {
            let asked = run(Command::new(bin.join("kubectl"))
                .args([config.as_str(), "--request-timeout=5s"])
                .args(["get", "--raw", "/readyz"]));
            let Err(error) = asked else {
                return Ok(());
            };
            for daemon in &mut self.daemons {
                daemon.check()?;
            }
            if Instant::now() > deadline {
                bail!("{error:#}\n{}", self.log_tails());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// The API server's static tokens: token, user, its id, groups.
fn tokens() -> String {
    Identity::all()
        .map(|identity| {
            let (user, groups) = identity.user();
            format!("{},{user},{user},\"{groups}\"\n", identity.token())
        })
        .collect()
}

fn service_account_key(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("service-accounts.key");
    // The form in which Kubernetes reads it, too.
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f"])
        .arg(&path))
    .context("make the key of service accounts")?;
    fs::remove_file(path.with_extension("key.pub")).context("remove the key's other half")?;
    Ok(path)
}
