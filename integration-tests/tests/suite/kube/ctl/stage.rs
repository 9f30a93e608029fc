//! A manager on the node, with the rights that it has in a cluster, and users.
//!
//! The manager is a process, and beside it is a pod with the label of its pods that has the node's network: what
//! the API server's proxy sends to that pod reaches the manager.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, PATIENCE, rss_anon_kib};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::rights::{
    account, account_name, binding, containers, give, token_of, token_rule, wait_allowed,
};
use crate::kube::manifest::script;

pub(super) const NAMESPACE: &str = "komodor-podmotion-system";

const SHIMS: &str = "/run/podmotion/shims";

/// The managers' pods are found by it.
const LABEL: &str = "komodor-podmotion-node";

/// All that is there besides the pods of a test.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a Cluster,
    folder: PathBuf,
    manager: Manager,
    _pod: Option<SystemPod<'a>>,
}

/// A manager that is killed when this is dropped.
pub(super) struct Manager(Child);

impl Drop for Manager {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Goes with the stage.
struct SystemPod<'a>(&'a Cluster);

impl Drop for SystemPod<'_> {
    fn drop(&mut self) {
        let _ = self.0.kubectl().run(&[
            "delete",
            "pod",
            "manager",
            "--namespace",
            NAMESPACE,
            "--now",
            "--ignore-not-found",
        ]);
    }
}

impl<'a> Stage<'a> {
    /// With the pod that leads to the manager.
    pub(super) fn set(cluster: &'a Cluster) -> Result<Self> {
        let mut stage = Self::without_pod(cluster)?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "manager", "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/name": LABEL},
            },
            "spec": {
                "nodeName": "node-1", "hostNetwork": true, "automountServiceAccountToken": false,
                "containers": [script("manager", "sleep 100000")],
            },
        });
        cluster.kubectl().apply(&pod)?;
        stage._pod = Some(SystemPod(cluster));
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        cluster.kubectl().run(&[
            "wait",
            &patience,
            "--namespace",
            NAMESPACE,
            "--for=condition=Ready",
            "pod/manager",
        ])?;
        Ok(stage)
    }

    /// With a manager that only tests reach.
    pub(super) fn without_pod(cluster: &'a Cluster) -> Result<Self> {
        give(cluster)?;
        let folder = cluster.node().folder().join("ctl");
        fs::create_dir_all(&folder).context("create the test's folder")?;
        let manager = start_manager(cluster, &folder, 8090)?;
        Ok(Self {
            cluster,
            folder,
            manager,
            _pod: None,
        })
    }

    /// Another manager, on another port.
    pub(super) fn manager(&self, port: u16) -> Result<Manager> {
        start_manager(self.cluster, &self.folder, port)
    }

    /// What the manager has in memory of its own, in KiB.
    pub(super) fn manager_memory(&self) -> Result<u64> {
        rss_anon_kib(i32::try_from(self.manager.0.id()).context("a pid")?)
    }

    /// Who may use the plugin to see.
    pub(super) fn viewer(&self) -> Result<User> {
        self.user("viewer", &["plugin-view"])
    }

    /// Who may use it for sleep and wake too.
    pub(super) fn operator(&self) -> Result<User> {
        self.user("operator", &["plugin-view", "plugin-operate"])
    }

    /// A user with these roles in Podmotion's namespace, who may see pods elsewhere.
    pub(super) fn user(&self, name: &str, roles: &[&str]) -> Result<User> {
        let kubectl = self.cluster.kubectl();
        kubectl.apply(&account("default", name))?;
        kubectl.apply(&binding(
            name,
            "default",
            ("ClusterRole", "view"),
            ("default", name),
        ))?;
        for role in roles {
            let binding_name = format!("{name}-{role}");
            let to = ("default", name);
            kubectl.apply(&binding(&binding_name, NAMESPACE, ("Role", role), to))?;
        }
        let config = self.kubeconfig("default", name)?;
        let account = account_name("default", name);
        for role in roles {
            let (verb, token) = match *role {
                "plugin-view" => ("get", "podmotion-viewer"),
                _ => ("create", "podmotion-operator"),
            };
            let proxy = json!({
                "namespace": NAMESPACE, "verb": verb, "resource": "pods", "subresource": "proxy",
            });
            wait_allowed(self.cluster, &account, &proxy)?;
            wait_allowed(self.cluster, &account, &token_of(NAMESPACE, token))?;
        }
        User::new(self.cluster, config)
    }

    /// A service account in a namespace of its own that may see and operate there.
    pub(super) fn tenant(&self, namespace: &str) -> Result<()> {
        let kubectl = self.cluster.kubectl();
        kubectl.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
        }))?;
        kubectl.apply(&account(namespace, "podmotion"))?;
        let role = ("ClusterRole", "podmotion-operator");
        kubectl.apply(&binding(
            "podmotion",
            namespace,
            role,
            (namespace, "podmotion"),
        ))?;
        kubectl.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "make-token", "namespace": namespace},
            "rules": [token_rule("podmotion")],
        }))?;
        let role = ("Role", "make-token");
        let to = ("default", "operator");
        kubectl.apply(&binding("make-token", namespace, role, to))?;
        let operator = account_name("default", "operator");
        wait_allowed(self.cluster, &operator, &token_of(namespace, "podmotion"))?;
        let tenant = account_name(namespace, "podmotion");
        wait_allowed(self.cluster, &tenant, &containers(namespace, "list"))
    }

    /// A token of a service account of Podmotion's.
    pub(super) fn token(&self, account: &str, audience: Option<&str>) -> Result<String> {
        let audience = audience.map(|audience| format!("--audience={audience}"));
        let words = ["create", "token", account, "--namespace", NAMESPACE];
        let words: Vec<&str> = words.into_iter().chain(audience.as_deref()).collect();
        Ok(self.cluster.kubectl().run(&words)?.trim().to_owned())
    }

    /// What the node's own command line says of a pod's only container.
    pub(super) fn on_node(&self, pod: &str) -> Result<Value> {
        let output = Command::new(self.cluster.node().tools().cli()?)
            .args(["inspect", pod, "--output", "json", "--shims", SHIMS])
            .output()
            .context("run podmotion")?;
        let said = Said::of(&output).ends_with(0)?;
        serde_json::from_str(&said.out).context("read podmotion's output")
    }

    /// A socket that nobody listens on.
    pub(super) fn dead_shim(&self) -> Result<PathBuf> {
        let path = Path::new(SHIMS).join("dead.sock");
        drop(UnixListener::bind(&path).with_context(|| format!("make {}", path.display()))?);
        Ok(path)
    }

    /// Writes down a self-test's result, where the manager looks for it.
    pub(super) fn write_self_test(&self, report: &Value) -> Result<()> {
        let path = self.folder.join("self-test.json");
        fs::write(&path, report.to_string()).with_context(|| format!("write {}", path.display()))
    }

    fn kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        kubeconfig(self.cluster, &self.folder, namespace, account)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // The next test's node has had no self-test.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A file for who is a service account. It is there at once, as a manager may be reading the last one.
fn kubeconfig(cluster: &Cluster, folder: &Path, namespace: &str, account: &str) -> Result<PathBuf> {
    let kubectl = cluster.kubectl();
    let token = kubectl.run(&["create", "token", account, "--namespace", namespace])?;
    let text = fs::read_to_string(kubectl.config()).context("read the kubeconfig")?;
    let mut config: Value = serde_json::from_str(&text).context("parse the kubeconfig")?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let path = folder.join(format!("{namespace}-{account}.kubeconfig"));
    let mut file = NamedTempFile::new_in(folder).context("make a kubeconfig")?;
    write!(file, "{config}").context("write a kubeconfig")?;
    file.persist(&path).context("name a kubeconfig")?;
    Ok(path)
}

/// Starts one and waits until it listens, which it says itself.
fn start_manager(cluster: &Cluster, folder: &Path, port: u16) -> Result<Manager> {
    let kubeconfig = kubeconfig(cluster, folder, NAMESPACE, "podmotion-manager")?;
    let log = folder.join(format!("manager-{port}.log"));
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut child = Command::new(cluster.node().tools().manager()?)
        .args(["--node-name", "node-1", "--namespace", NAMESPACE])
        .arg("--node-server-address")
        .arg(format!("0.0.0.0:{port}"))
        .args(["--shims", SHIMS, "--self-test"])
        .arg(folder.join("self-test.json"))
        .env("KUBECONFIG", kubeconfig)
        .env("PODMOTION_LOG", "info,podmotion_manager::server=debug")
        // Managers on one node, which there never are elsewhere.
        .env(
            "PODMOTION_METRICS_ADDRESS",
            format!("127.0.0.1:{}", port + 1000),
        )
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(Stdio::piped())
        .spawn()
        .context("start the manager")?;
    let errors = child.stderr.take().context("no standard error")?;
    let manager = Manager(child);
    let mut lines = BufReader::new(errors);
    let mut said = String::new();
    while !said.contains("the node server accepts connections") {
        let read = lines
            .read_line(&mut said)
            .context("read the manager's log")?;
        ensure!(read != 0, "the manager has ended: {said}");
    }
    thread::spawn(move || {
        let mut log = File::options().append(true).open(log)?;
        std::io::copy(&mut lines, &mut log)
    });
    Ok(manager)
}

/// Somebody with a kubectl that has the plugin.
pub(super) struct User {
    kubectl: PathBuf,
    config: PathBuf,
    path: String,
}

impl User {
    fn new(cluster: &Cluster, config: PathBuf) -> Result<Self> {
        let plugin = cluster.node().tools().kubectl_plugin()?;
        let folder = plugin.parent().context("the plugin lies nowhere")?;
        Ok(Self {
            kubectl: cluster.kubectl().program().to_owned(),
            path: format!("{}:/usr/bin:/bin", folder.display()),
            config,
        })
    }

    /// `kubectl podmotion` with these words.
    pub(super) fn run(&self, words: &[&str]) -> Result<Said> {
        let patience = PATIENCE.as_secs().to_string();
        let output = Command::new("/usr/bin/timeout")
            .arg(patience)
            .arg(&self.kubectl)
            .arg("podmotion")
            .args(words)
            .env("PATH", &self.path)
            .env("KUBECONFIG", &self.config)
            .stdin(Stdio::null())
            .output()
            .context("run kubectl podmotion")?;
        Ok(Said::of(&output))
    }
}

/// What somebody said, and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    code: Option<i32>,
    pub(super) out: String,
    pub(super) err: String,
}

impl Said {
    pub(super) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails unless it ended with this code.
    pub(super) fn ends_with(self, code: i32) -> Result<Self> {
        ensure!(self.code == Some(code), "not {code}: {self:?}");
        Ok(self)
    }

    /// The lines, with one blank between words.
    pub(super) fn table(&self) -> Vec<String> {
        let words = |line: &str| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        self.out.lines().map(words).collect()
    }

    /// The line that begins with a word.
    pub(super) fn line(&self, first: &str) -> Result<String> {
        let begins = |line: &String| line.split(' ').next() == Some(first);
        let line = self.table().into_iter().find(begins);
        line.with_context(|| format!("no {first} in {self:?}"))
    }
}
