//! The folder of a cluster: what a person uses it with, its log, and the lock of its process.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use podmotion_integration_tests::Cluster;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The pod to try it with.
const POD: &str = include_str!("../../../../kubernetes/pod.yaml");

/// Held, with the holder's process id in it.
const LOCK: &str = "lock";
const LOG: &str = "log";
const KUBECONFIG: &str = "kubeconfig";
const USAGE: &str = "README";

/// Where everything about one cluster is.
pub struct Folder(PathBuf);

impl Folder {
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.0).with_context(|| format!("create {}", self.0.display()))
    }

    /// Removes it with the files that this makes; anything else in it stays, and is an error.
    pub fn remove(&self) -> Result<()> {
        for name in [
            LOCK,
            LOG,
            KUBECONFIG,
            USAGE,
            "pod.yaml",
            "kubectl",
            "podmotion",
            "podmotion-2",
        ] {
            let path = self.0.join(name);
            gone(fs::remove_file(&path), &path)?;
        }
        gone(fs::remove_dir(&self.0), &self.0)
    }

    /// The process that runs the cluster, if one does.
    pub fn holder(&self) -> Result<Option<i32>> {
        let path = self.0.join(LOCK);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => {
                let text = self.read(LOCK)?;
                let pid = text.trim().parse();
                pid.map(Some)
                    .with_context(|| format!("read {}: {text:?}", path.display()))
            }
            Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// Makes this process the holder, until the result is dropped.
    pub fn hold(&self) -> Result<File> {
        let path = self.0.join(LOCK);
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("lock {}", path.display()))?;
        writeln!(file, "{}", std::process::id())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(file)
    }

    pub fn open_log(&self) -> Result<File> {
        let path = self.0.join(LOG);
        File::create(&path).with_context(|| format!("create {}", path.display()))
    }

    /// What the process has said.
    pub fn log(&self) -> Result<String> {
        self.read(LOG)
    }

    /// Puts there what a person uses `cluster` with.
    pub fn fill(&self, cluster: &Cluster) -> Result<()> {
        let kubectl = cluster.kubectl();
        let config = fs::read(kubectl.config()).context("read the cluster's kubeconfig")?;
        let kubeconfig = self.write(KUBECONFIG, &config, 0o600)?;
        let kubectl = format!(
            "#!/bin/sh\nexec {} --kubeconfig={} \"$@\"\n",
            kubectl.program().display(),
            kubeconfig.display(),
        );
        self.write("kubectl", kubectl.as_bytes(), 0o755)?;
        let tools = cluster.node().tools();
        let nodes = [
            ("podmotion", Some(std::process::id())),
            ("podmotion-2", cluster.second_thread()),
        ];
        for (name, thread) in nodes {
            let Some(thread) = thread else { continue };
            let script = format!(
                "#!/bin/sh\nexec nsenter --mount=/proc/{thread}/ns/mnt --net=/proc/{thread}/ns/net \
                 {} \"$@\"\n",
                tools.cli()?.display()
            );
            self.write(name, script.as_bytes(), 0o755)?;
        }
        self.write("pod.yaml", POD.as_bytes(), 0o644)?;
        let usage = self.describe(cluster)?;
        self.write(USAGE, usage.as_bytes(), 0o644).map(drop)
    }

    /// How to use the cluster, for a person.
    pub fn usage(&self) -> Result<String> {
        self.read(USAGE)
    }

    fn describe(&self, cluster: &Cluster) -> Result<String> {
        let folder = self.0.display();
        let second = match cluster.second_thread() {
            Some(_) => format!("\n    {folder}/podmotion-2 ps    # on node-2"),
            None => String::new(),
        };
        Ok(format!(
            "kubectl:     {folder}/kubectl, or {}\n\
             KUBECONFIG:  {folder}/{KUBECONFIG}\n\
             log:         {}\n\n\
             A pod that sleeps ten seconds after its last request, and wakes with the next:\n\n\
             \x20   alias kubectl={folder}/kubectl\n\
             \x20   kubectl apply -f {folder}/pod.yaml\n\
             \x20   kubectl wait --for=condition=Ready pod/sleeper\n\
             \x20   curl \"$(kubectl get pod sleeper -o jsonpath='{{.status.podIP}}')\":8080\n\
             \x20   {folder}/podmotion ps{second}\n\n\
             Images: podmotion.test/apps:1 and podmotion.test/busybox:1, with imagePullPolicy: Never.\n\
             There is no DNS and no kube-proxy.\n\n\
             `cargo xtask cluster down` takes everything away.\n",
            cluster.kubectl().program().display(),
            cluster.node().folder().join("containerd.log").display(),
        ))
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.0.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<PathBuf> {
        let path = self.0.join(name);
        File::create(&path)
            .and_then(|mut file| {
                file.set_permissions(fs::Permissions::from_mode(mode))?;
                file.write_all(content)
            })
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

fn gone(removed: std::io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            bail!("remove {}: {error}", path.display())
        }
        _ => Ok(()),
    }
}
