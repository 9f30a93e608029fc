//! Podmotion put on a machine that systemd runs, as a cluster's node: from the installer's image, on the
//! distribution's containerd, below a kubelet that is a unit too. Then the machine loses its power.
//!
//! ```text
//!   here: control plane        machine: kubelet ──CRI──> containerd ──> shims
//!   install ──> again ──> pods sleep, wake, sleep ──> power off, on ──> pods awake ──> install ──> they sleep
//!   ──> uninstall ──> they go on
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Disk, Image, RemoteNode, Tools, Vm};
use podmotion_proto::record::Record;
use serde_json::{Value, json};

use super::say;
use crate::images::{INSTALLER, archive};

/// How long the installer may take. With its self-test it is a minute.
const INSTALL: Duration = Duration::from_secs(400);

/// How long a container may take to fall asleep by itself.
const ASLEEP: Duration = Duration::from_secs(120);

/// What keeps a container from sleeping for a moment: its probes come every two seconds, and a machine that is
/// emulated is slow to answer them and to stop.
const PASSING: [&str; 8] = [
    "a connection is waiting to be accepted",
    "a connection has data under way",
    "a request has no answer yet",
    "a probe is under way",
    "a connection came or went",
    "the container is wanted",
    "did not freeze within",
    "did not stop within",
];

/// Runs the installer as the DaemonSet's init container does: with the node's `/` below another folder.
const RUN: &str = "unshare --mount --propagation slave sh -c 'mkdir -p /host && mount --rbind / /host && exec \
    /podmotion/podmotion/bin/podmotion-installer \"$@\"' installer";

/// The machine's command line.
const CLI: &str = "/opt/podmotion/bin/podmotion";

/// All that the installer has made or changed, with the times of it.
const INSTALLED: &str = "find /etc/containerd /etc/podmotion /opt/podmotion /sys/fs/bpf \
    -printf '%p %i %s %T@ %l\\n' | sort";

/// The pod that falls asleep by itself, light, and the one that is told to and sleeps deep.
const PODS: [&str; 2] = ["light", "deep"];

/// A machine that is a node.
struct Site {
    vm: Vm,
    node: RemoteNode,
    started: Instant,
}

pub(super) fn test() -> Result<()> {
    let started = Instant::now();
    // What follows is not part of the line that the test's result ends.
    println!();
    // There is one control plane at a time.
    crate::pool::stop_all();
    let tools = Tools::new(Disk::VERSIONS)?;
    let disk = Disk::of_node(&tools, &archive(INSTALLER)?);
    let disk = disk.context("make the disk of the virtual machine")?;
    let node = RemoteNode::start(&tools)?;
    let vm = Vm::boot(&tools, &disk)?;
    let mut site = Site { vm, node, started };
    site.say("booted");
    let done = scenario(&mut site).with_context(|| site.logs());
    done?;
    site.vm.power_off()?;
    say(started, "off");
    Ok(())
}

fn scenario(site: &mut Site) -> Result<()> {
    // One can log in before it has come up.
    site.vm.sh("systemctl start containerd.service")?;
    let config = site.vm.sh("cat /etc/containerd/config.toml")?;
    site.refused_by_containerd(&config)?;
    site.say("a configuration that the unit does not start with was taken back");
    site.installs()?;
    site.say("installed");
    site.node.join(&site.vm)?;
    site.say("a node");
    site.sleep_and_wake()?;
    site.say("its pods have slept and woken, and sleep");
    site.vm.lose_power()?;
    site.say("booted once more");
    site.awake_and_says_why()?;
    site.say("its pods are started anew, awake");
    site.installs_after_boot()?;
    site.say("installed once more: they sleep");
    site.uninstalls(&config)?;
    site.say("uninstalled: they go on");
    Ok(())
}

impl Site {
    fn say(&self, line: &str) {
        say(self.started, line);
    }

    /// containerd's unit does not come up with what the installer has written.
    fn refused_by_containerd(&self, config: &str) -> Result<()> {
        let drop_in = "/etc/systemd/system/containerd.service.d/picky.conf";
        self.vm.write(
            drop_in,
            "[Service]\nExecStartPre=/bin/sh -c '! grep podmotion /etc/containerd/config.toml'",
        )?;
        self.vm.sh("systemctl daemon-reload")?;
        let before = self.unit()?;
        let error = self.install("--self-test false").err();
        let error = format!("{:#}", error.context("it was installed")?);
        ensure!(
            error.contains("containerd.service")
                && error.contains("containerd's configuration of before was put back"),
            "{error}"
        );
        ensure!(self.vm.sh("cat /etc/containerd/config.toml")? == config);
        let after = self.unit()?;
        ensure!(after != before, "it was not restarted: {after}");
        self.vm
            .sh(&format!(
                "rm -r $(dirname {drop_in}) && systemctl daemon-reload"
            ))
            .map(drop)
    }

    /// The first time, and once more.
    fn installs(&self) -> Result<()> {
        let before = self.unit()?;
        let said = self.install("")?;
        ensure!(said.contains("\nrestart containerd.service\n"), "{said}");
        ensure!(said.contains("load the BPF programs\n"), "{said}");
        let after = self.unit()?;
        ensure!(before != after, "it was not restarted: {after}");
        self.self_test_passed()?;

        let installed = self.vm.sh(INSTALLED)?;
        let said = self.install("--self-test false")?;
        ensure!(
            !said.contains("restart") && !said.contains("write"),
            "{said}"
        );
        let now = self.vm.sh(INSTALLED)?;
        ensure!(installed == now, "was\n{installed}\nis\n{now}");
        ensure!(self.unit()? == after, "containerd was restarted");
        Ok(())
    }

    fn sleep_and_wake(&self) -> Result<()> {
        for (pod, annotations) in PODS.into_iter().zip([
            json!({"scaledown-duration": "3s", "deep-sleep-after": "never"}),
            json!({"scaledown-duration": "1h", "deep-sleep-after": "0"}),
        ]) {
            self.node.kubectl().apply(&manifest(pod, &annotations)?)?;
        }
        for pod in PODS {
            self.node.wait(&format!("pod/{pod}"), "condition=Ready")?;
            ensure!(self.count(pod)? == 1);
        }
        self.asleep()?;
        for pod in PODS {
            ensure!(self.count(pod)? == 2, "{pod} has lost its memory");
        }
        self.asleep()
    }

    /// As soon as it can: a probe that is under way keeps it awake.
    fn told_to_sleep(&self) -> Result<()> {
        let deadline = Instant::now() + ASLEEP;
        loop {
            let told = self.vm.sh_for(ASLEEP, &format!("{CLI} sleep default/deep"));
            let Err(error) = told else {
                return Ok(());
            };
            let words = format!("{error:#}");
            if !PASSING.iter().any(|why| words.contains(why)) || Instant::now() > deadline {
                return Err(error);
            }
        }
    }

    /// Each of them is at once, or within its idle time, and stays so while it is probed. After a boot the gate has
    /// seen no probe when the one is told to sleep: the first wakes it, and it sleeps again.
    fn asleep(&self) -> Result<()> {
        self.told_to_sleep()?;
        let watch = format!("exec 3< <(exec {CLI} watch --state light --pod light)");
        let light =
            format!("{watch}; grep --max-count 1 light <&3; found=$?; kill $!; exit $found");
        self.vm.sh_for(ASLEEP, &light)?;
        for pod in PODS {
            let deadline = Instant::now() + ASLEEP;
            let before = self.inspect(pod)?.probes.answered;
            loop {
                let now = self.inspect(pod)?;
                if now.depth.as_deref() == Some(pod) && now.probes.answered > before {
                    break;
                }
                ensure!(Instant::now() < deadline, "{pod} does not sleep: {now:?}");
            }
        }
        Ok(())
    }

    fn inspect(&self, pod: &str) -> Result<Record> {
        let said = self
            .vm
            .sh(&format!("{CLI} inspect default/{pod} --output json"))?;
        serde_json::from_str(&said).with_context(|| said.clone())
    }

    /// What a machine has of its pods after a boot, before the installer has been there.
    fn awake_and_says_why(&self) -> Result<()> {
        for pod in PODS {
            let name = format!("pod/{pod}");
            let restarted = "jsonpath={.status.containerStatuses[0].restartCount}=1";
            self.node.wait(&name, restarted)?;
            self.node.wait(&name, "condition=Ready")?;
            ensure!(self.count(pod)? == 1, "{pod} was not started anew");
            // Whoever wants to know is told, and it runs on.
            let error = self.vm.sh(&format!("{CLI} sleep default/{pod}")).err();
            let error = format!("{:#}", error.context("it sleeps without a gate")?);
            ensure!(error.contains("/sys/fs/bpf/podmotion/v1"), "{error}");
            let said = self
                .vm
                .sh(&format!("{CLI} ps --state running --pod {pod}"))?;
            ensure!(said.contains("gate-unavailable"), "{said}");
        }
        let left = self.vm.sh("ls -A /sys/fs/bpf; ls /run/podmotion")?;
        ensure!(left.trim() == "shims", "{left}");
        // No socket without a shim, and none of those before the boot has left a checkpoint.
        let sockets = self.vm.sh("ls /run/podmotion/shims")?;
        ensure!(sockets.lines().count() == PODS.len(), "{sockets}");
        let images = self.vm.sh("ls /var/lib/podmotion/checkpoints")?;
        ensure!(images.is_empty(), "checkpoints are left: {images}");
        Ok(())
    }

    /// What the DaemonSet's init container does at each boot. Pods that were there before need nobody.
    fn installs_after_boot(&self) -> Result<()> {
        let (unit, config) = (self.unit()?, "cat /etc/containerd/config.toml");
        let before = self.vm.sh(config)?;
        let said = self.install("")?;
        ensure!(
            !said.contains("restart") && !said.contains("write"),
            "{said}"
        );
        ensure!(self.unit()? == unit, "containerd was restarted");
        ensure!(self.vm.sh(config)? == before);
        self.self_test_passed()?;
        self.asleep()?;
        for pod in PODS {
            ensure!(self.count(pod)? == 2, "{pod} has lost its memory");
        }
        self.asleep()
    }

    fn uninstalls(&self, config: &str) -> Result<()> {
        let before = self.unit()?;
        let said = self.run("uninstall", "")?;
        for pod in PODS {
            ensure!(
                said.contains(&format!("default/{pod}/app: awake\n")),
                "{said}"
            );
        }
        ensure!(said.contains("\nrestart containerd.service\n"), "{said}");
        let after = self.unit()?;
        ensure!(before != after, "it was not restarted: {after}");
        ensure!(self.vm.sh("cat /etc/containerd/config.toml")? == config);
        let left = self.vm.sh(
            "ls -d /opt/podmotion /etc/podmotion /var/lib/podmotion /run/podmotion 2>/dev/null; \
             ls -A /sys/fs/bpf",
        );
        ensure!(left.as_ref().is_ok_and(String::is_empty), "{left:?}");
        for pod in PODS {
            ensure!(self.count(pod)? == 3, "{pod} has lost its memory");
            let status = self.node.kubectl().get(&["pod", pod])?;
            let status = &status["status"]["containerStatuses"][0];
            ensure!(status["restartCount"] == 1, "{status:#}");
        }
        Ok(())
    }

    fn install(&self, more: &str) -> Result<String> {
        self.run("install", &format!("--source /podmotion/podmotion {more}"))
    }

    fn run(&self, command: &str, more: &str) -> Result<String> {
        let node = RemoteNode::NAME;
        let arguments = "--host-root /host --restart auto --runtime-class none";
        let script = format!("{RUN} {command} {arguments} --node-name {node} {more}");
        self.vm.sh_for(INSTALL, &script)
    }

    /// The state of containerd's unit, and its main process.
    fn unit(&self) -> Result<String> {
        let unit = "systemctl show containerd.service --property=ActiveState,MainPID";
        let said = self.vm.sh(unit)?;
        ensure!(said.contains("ActiveState=active\n"), "{said}");
        Ok(said)
    }

    /// In both depths, as its report says.
    fn self_test_passed(&self) -> Result<()> {
        let report = self.vm.sh("cat /run/podmotion/self-test.json")?;
        let report: Value = serde_json::from_str(&report).context("read the report")?;
        ensure!(report["passed"] == true, "{report:#}");
        for step in ["light: wake", "deep: wake"] {
            let mut steps = report["steps"].as_array().context("no steps")?.iter();
            ensure!(steps.any(|one| one["name"] == step), "{report:#}");
        }
        Ok(())
    }

    /// The counter's next number.
    fn count(&self, pod: &str) -> Result<u64> {
        let status = self.node.kubectl().get(&["pod", pod])?;
        let address = status["status"]["podIP"].as_str().context("no address")?;
        let answer = self.vm.sh(&format!(
            "exec 3<>/dev/tcp/{address}/8080 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
        ))?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let body: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
        body["count"].as_u64().context("no count")
    }

    fn logs(&self) -> String {
        let inside = self.vm.sh(
            "journalctl --no-pager --lines 60 --unit kubelet --unit containerd; \
             tail --lines 5 /var/log/pods/*/*/*.log; cat /run/podmotion/self-test.json; true",
        );
        let inside = inside.unwrap_or_else(|error| format!("{error:#}"));
        format!(
            "The console:\n{}\nInside:\n{inside}",
            self.vm.console_tail()
        )
    }
}

/// A pod with one counter that the kubelet probes.
fn manifest(name: &str, annotations: &Value) -> Result<Value> {
    let annotations = annotations.as_object().context("annotations are fields")?;
    let annotations: Value = annotations
        .iter()
        .map(|(name, value)| (format!("komodor.com/podmotion-{name}"), value.clone()))
        .collect();
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "runtimeClassName": "podmotion",
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "app",
                "image": Image::Apps.reference(),
                "imagePullPolicy": "Never",
                "command": ["python3", "/apps/counter.py"],
                // That path is not counted.
                "readinessProbe": {
                    "httpGet": {"path": "/mem", "port": 8080},
                    "periodSeconds": 2,
                },
            }],
        },
    }))
}
