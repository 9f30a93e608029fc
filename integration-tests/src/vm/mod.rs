//! A virtual machine with a distribution's kernel, systemd and cgroup v2, run by emulation.
//!
//! It boots a throw-away overlay of the disk that `cargo xtask setup` makes, with a second disk at
//! `/podmotion`, read-only: see [`Disk`].

mod console;
mod disk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::PATIENCE;
use crate::machine::{Machine, run};
use crate::process::{MARK, wait_gone};
use crate::tools::Tools;
use console::Console;
use disk::Daemon;
pub use disk::Disk;

/// How long it may take to boot, or to go down. Emulated on a busy machine it takes a minute.
const BOOT: Duration = Duration::from_secs(600);

/// Port of the SSH server on our side. The machine's network namespace is its own: the port is free.
const PORT: &str = "2222";

/// The kernel's command line. Protection from other users of the processor, of which there are none, is
/// costly to emulate. A kernel that is broken ends qemu, which does not reboot: it may do nothing any more otherwise.
const KERNEL: &str = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off oops=panic panic=-1 \
    systemd.show_status=1 systemd.mount-extra=/dev/vdb:/podmotion:ext4:ro";

/// Without AVX: programs that find it use it, and emulated each of its instructions is a call. With all that can be
/// emulated the tests take a third longer.
const CPU: &str = "Nehalem";

/// The distribution's own containerd stays off where tests start theirs.
const MASK: &str = " systemd.mask=containerd.service";

/// What the console says once one can log in.
const READY: [&str; 2] = ["Started", "ssh.service"];

/// A running virtual machine, killed in `Drop`. There can be one at a time.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: Console,
    key: PathBuf,
    tools: Tools,
    overlay: PathBuf,
    second: PathBuf,
    daemon: Daemon,
}

impl Vm {
    /// Boots it, with `disk` at `/podmotion`; returns once commands can be run.
    /// [`Machine::enter`] must have been called.
    pub fn boot(tools: &Tools, disk: &Disk) -> Result<Self> {
        let folder = Machine::get()?.work().join("vm");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let overlay = folder.join("overlay.qcow2");
        run(Command::new(tools.cached("tools/bin/qemu-img")?)
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(tools.cached("vm/disk.img")?)
            .arg(&overlay))?;
        let (second, daemon) = (disk.path().to_owned(), disk.daemon());
        let (child, console) = start(tools, &overlay, &second, daemon)?;
        let vm = Self {
            child,
            console,
            key: tools.cached("vm/key")?,
            tools: tools.clone(),
            overlay,
            second,
            daemon,
        };
        vm.wait_ready()?;
        Ok(vm)
    }

    fn wait_ready(&self) -> Result<()> {
        self.console
            .wait_for(READY, Instant::now() + BOOT)
            .context("boot the virtual machine")
    }

    /// Cuts its power off and boots it once more. What was written until now is on its disk.
    pub fn lose_power(&mut self) -> Result<()> {
        self.sh("sync")?;
        // Nothing inside gets to know of it. The connection has nobody at its other end then.
        self.child.kill().context("end qemu")?;
        self.child.wait().context("wait for qemu")?;
        let (tools, second) = (&self.tools, &self.second);
        (self.child, self.console) = start(tools, &self.overlay, second, self.daemon)?;
        self.wait_ready()
    }

    /// Runs a shell script inside; what it says. It may take [`PATIENCE`].
    pub fn sh(&self, script: &str) -> Result<String> {
        self.sh_for(PATIENCE, script)
    }

    /// The same for one that may take longer.
    pub fn sh_for(&self, patience: Duration, script: &str) -> Result<String> {
        run(&mut self.ssh(patience, &[script]))
    }

    /// Writes a file inside, for root alone, and makes the folders that it is in.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        self.sh(&format!(
            "set -e; umask 077; mkdir -p \"$(dirname {path})\"; cat >{path} <<'END OF FILE'\n{text}\nEND OF FILE\n"
        ))
        .map(drop)
    }

    /// A command that runs `program` inside, as root, and ends with its status. It is killed after
    /// `patience`.
    pub fn ssh(&self, patience: Duration, program: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg(patience.as_secs().to_string())
            .args(["ssh", "-F", "/dev/null", "-p", PORT, "-i"])
            .arg(&self.key);
        // It is made anew each time and nobody is between us: its key says nothing.
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=60",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            command.args(["-o", option]);
        }
        command.arg("root@127.0.0.1").args(program);
        command.stdin(Stdio::null());
        command
    }

    /// The end of what its console said.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// Shuts it down as its user would; returns when it is off.
    pub fn power_off(self) -> Result<()> {
        // The connection may be cut off before it brings the command's status.
        let asked = run(&mut self.ssh(PATIENCE, &["systemctl", "poweroff"]));
        let pid = self.child.id().try_into().context("qemu's pid")?;
        wait_gone(pid, BOOT).with_context(|| {
            format!(
                "power the virtual machine off ({asked:?}); it says:\n{}",
                self.console_tail()
            )
        })
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself; then there is only its exit status to collect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Switches it on.
fn start(tools: &Tools, overlay: &Path, second: &Path, daemon: Daemon) -> Result<(Child, Console)> {
    let (output, says) = std::io::pipe().context("make a pipe for the console")?;
    let mut command = qemu(tools, overlay, second, daemon)?;
    command
        .stdin(Stdio::null())
        .stdout(says.try_clone().context("share the console's pipe")?)
        .stderr(says);
    let child = command.spawn().context("start qemu")?;
    // The command has the pipe's other end, whose closing is to tell of qemu's end.
    drop(command);
    Ok((child, Console::read(output)))
}

fn qemu(tools: &Tools, overlay: &Path, second: &Path, daemon: Daemon) -> Result<Command> {
    let mut kernel = KERNEL.to_owned();
    if daemon == Daemon::OfTests {
        kernel += MASK;
    }
    let drive = |path: &Path, options: &str| -> Result<String> {
        let path = path.to_str().context("a disk's path is not UTF-8")?;
        // A comma ends the path in qemu's options.
        ensure!(!path.contains(','), "a disk's path has a comma: {path}");
        Ok(format!("file={path},if=virtio,{options}"))
    };
    let mut command = Command::new(tools.cached("tools/bin/qemu-system-x86_64")?);
    command
        .env(MARK, Machine::get()?.name())
        .arg("-L")
        .arg(tools.cached("tools/qemu/share/qemu")?)
        .args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2"])
        .args([
            "-m",
            "2048",
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args(["-serial", "stdio", "-append", &kernel, "-kernel"])
        .arg(tools.cached("vm/vmlinuz")?)
        .arg("-initrd")
        .arg(tools.cached("vm/initrd")?)
        .args(["-drive", &drive(overlay, "format=qcow2,cache=unsafe")?])
        .args(["-drive", &drive(second, "format=raw,readonly=on")?])
        .arg("-netdev")
        .arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{PORT}-:22"))
        .args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    Ok(command)
}
