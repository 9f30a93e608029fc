//! What the kernel has to have. Each feature is used, not looked up by version.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::ptrace::{self, Options};
use nix::sys::utsname::uname;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd as take, pidfd_open};

use super::{Verdict, sys};

/// The oldest kernel that has all of it.
const OLDEST: (u32, u32) = (5, 15);

/// Not in the library: from the kernel's include/uapi/linux/ptrace.h.
const PTRACE_O_SUSPEND_SECCOMP: i32 = 1 << 21;

const DEVICE: &str = "/dev/userfaultfd";
const UNPRIVILEGED: &str = "/proc/sys/vm/unprivileged_userfaultfd";

/// The release is new enough.
pub fn version() -> Verdict {
    let release = match uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(error) => {
            return Verdict::failed(
                format!("the kernel does not tell its release: {error}"),
                "run Linux",
            );
        }
    };
    let (major, minor) = OLDEST;
    match numbers(&release) {
        Some(found) if found >= OLDEST => Verdict::ok(format!("Linux {release}")),
        _ => Verdict::failed(
            format!("Linux {release}, and {major}.{minor} is the oldest that works"),
            "upgrade the kernel",
        ),
    }
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// It works here, and containers without privileges can have one.
pub fn userfaultfd() -> Verdict {
    let device = File::options().read(true).write(true).open(DEVICE);
    let made = match (sys::userfaultfd(), &device) {
        (Err(_), Ok(device)) => sys::userfaultfd_of(device),
        (made, _) => made,
    };
    if let Err(error) = made.and_then(|uffd| sys::handshake(&uffd)) {
        return Verdict::failed(
            format!("userfaultfd: {error}"),
            "use a kernel with CONFIG_USERFAULTFD, and run this without a seccomp filter",
        );
    }
    let anybody = fs::read_to_string(UNPRIVILEGED).is_ok_and(|text| text.trim() == "1");
    match device {
        Ok(_) => Verdict::ok(DEVICE),
        Err(_) if anybody => Verdict::ok("vm.unprivileged_userfaultfd is 1"),
        Err(error) => Verdict::warning(
            format!(
                "only for containers with CAP_SYS_PTRACE, others go straight to deep sleep: {DEVICE}: {error}"
            ),
            "use Linux 6.1 or newer, or set `sysctl vm.unprivileged_userfaultfd=1`",
        ),
    }
}

/// A descriptor of another process can be copied.
pub fn pidfd_getfd() -> Verdict {
    let taken = with_process(|child| {
        let pid = rustix::process::Pid::from_child(child);
        let handle = pidfd_open(pid, PidfdFlags::empty()).context("open a process")?;
        let number = io::stdin().as_raw_fd();
        take(&handle, number, PidfdGetfdFlags::empty()).context("take a descriptor of a process")
    });
    match taken {
        Ok(_) => Verdict::ok("a descriptor of another process was taken"),
        Err(error) => Verdict::failed(
            format!("{error:#}"),
            "use Linux 5.6 or newer, and let nothing (Yama, an LSM, a seccomp filter) forbid ptrace to root",
        ),
    }
}

/// A traced process can be relieved of its filters.
pub fn suspend_seccomp() -> Verdict {
    let seized = with_process(|child| {
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a pid")?);
        let options = Options::from_bits_retain(PTRACE_O_SUSPEND_SECCOMP);
        ptrace::seize(pid, options).context("PTRACE_O_SUSPEND_SECCOMP")
    });
    match seized {
        Ok(()) => Verdict::ok("PTRACE_O_SUSPEND_SECCOMP"),
        Err(error) => Verdict::failed(
            format!("containers with a seccomp filter cannot sleep: {error:#}"),
            "use a kernel with CONFIG_CHECKPOINT_RESTORE and CONFIG_SECCOMP, and run this without a seccomp filter",
        ),
    }
}

/// Runs `work` with a process that only waits.
fn with_process<T>(work: impl FnOnce(&Child) -> Result<T>) -> Result<T> {
    let program = std::env::current_exe().context("find this program")?;
    let mut child = Command::new(program)
        .arg("self-test-process")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("start a process")?;
    let result = work(&child);
    child.kill().context("end a process")?;
    child.wait().context("wait for a process")?;
    result
}

/// Page tables can be searched by the kernel.
pub fn pagemap_scan() -> Verdict {
    let scanned = File::open("/proc/self/pagemap").and_then(|file| sys::scan_pages(&file));
    match scanned {
        Ok(()) => Verdict::ok("PAGEMAP_SCAN"),
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Verdict::warning(
            "without PAGEMAP_SCAN large and mostly empty memory takes longer to fall asleep",
            "use Linux 6.7 or newer",
        ),
        Err(error) => Verdict::failed(
            format!("/proc/self/pagemap: {error}"),
            "mount /proc as usual",
        ),
    }
}

/// A freezer of either version is mounted.
pub fn freezer() -> Verdict {
    let table = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(table) => table,
        Err(error) => {
            return Verdict::failed(
                format!("/proc/self/mountinfo: {error}"),
                "mount /proc as usual",
            );
        }
    };
    match freezer_of(&table) {
        Some(found) => Verdict::ok(found),
        None => Verdict::failed(
            "no cgroup version 2 and no freezer of version 1 is mounted",
            "mount cgroups below /sys/fs/cgroup, with CONFIG_CGROUP_FREEZER for version 1",
        ),
    }
}

/// Version 1 where it has the freezer: version 2 has none of its processes then that count.
fn freezer_of(mountinfo: &str) -> Option<String> {
    let of = |kind: &str, option: &str| {
        let line = mountinfo.lines().find(|line| {
            let fields = line.split_once(" - ").map_or("", |(_, fields)| fields);
            let mut fields = fields.split(' ');
            fields.next() == Some(kind)
                && (option.is_empty()
                    || fields
                        .nth(1)
                        .is_some_and(|all| all.split(',').any(|one| one == option)))
        });
        line.and_then(|line| line.split(' ').nth(4))
            .map(str::to_owned)
    };
    let v1 = of("cgroup", "freezer").map(|place| format!("version 1, {place}"));
    v1.or_else(|| of("cgroup2", "").map(|place| format!("version 2, {place}")))
}

/// The kernel's own types.
pub fn btf() -> Verdict {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        return Verdict::ok(path);
    }
    Verdict::failed(
        format!("there is no {path}"),
        "use a kernel with CONFIG_DEBUG_INFO_BTF",
    )
}

/// Tap devices.
pub fn tun() -> Verdict {
    let path = "/dev/net/tun";
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Verdict::ok(path),
        Err(error) => Verdict::failed(
            format!("{path}: {error}"),
            "load the module: `modprobe tun`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(numbers("6.18.0-rc1+"), Some((6, 18)));
        assert_eq!(numbers("5.15.167.4-microsoft"), Some((5, 15)));
        assert!(numbers("5.4.0") < Some(OLDEST));
        assert!(numbers("5.100") > Some(OLDEST));
        assert_eq!(numbers("linux"), None);
    }

    #[test]
    fn the_freezer_that_holds_the_containers_is_found() {
        let v2 = "29 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let v1 = "31 23 0:27 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";
        assert_eq!(freezer_of(v2).unwrap(), "version 2, /sys/fs/cgroup");
        let both = format!("{v2}{v1}");
        assert_eq!(
            freezer_of(&both).unwrap(),
            "version 1, /sys/fs/cgroup/freezer"
        );
        assert_eq!(freezer_of("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
