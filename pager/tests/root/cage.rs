//! Processes in a freezer cgroup, put to sleep and woken as the shim does it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podmotion_inject::{Seized, on_own_thread};
use podmotion_pager::{FillFailed, FillPolicy, Filling, Moved, NotMoved, Pager};

fn thaw(directory: &Path, version1: bool) {
    let (file, value) = match version1 {
        true => ("freezer.state", "THAWED"),
        false => ("cgroup.freeze", "0"),
    };
    fs::write(directory.join(file), value).unwrap();
}

/// A cgroup of its own, removed when dropped with what is in it.
pub struct Cage {
    pub directory: PathBuf,
    pub version1: bool,
    /// To be removed when dropped.
    pub owned: bool,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Cage {
    pub fn new() -> Self {
        let version1 = Path::new("/sys/fs/cgroup/freezer").exists();
        let root = if version1 {
            "/sys/fs/cgroup/freezer"
        } else {
            "/sys/fs/cgroup"
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("podmotion-pager-{}-{number}", std::process::id());
        let directory = Path::new(root).join(name);
        fs::create_dir(&directory).unwrap();
        Self {
            directory,
            version1,
            owned: true,
        }
    }

    /// A program that begins in the cage.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.directory.join("cgroup.procs"))
            .arg(program);
        command
    }

    pub fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    pub fn freeze(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.version1 {
                true => self.set("freezer.state", "FROZEN"),
                false => self.set("cgroup.freeze", "1"),
            }
            if self.is_frozen() {
                return;
            }
            assert!(Instant::now() < deadline, "does not freeze");
            std::thread::yield_now();
        }
    }

    pub fn is_frozen(&self) -> bool {
        match self.version1 {
            true => self.get("freezer.state").trim() == "FROZEN",
            false => self.get("cgroup.events").contains("frozen 1"),
        }
    }

    pub fn thaw(&self) {
        thaw(&self.directory, self.version1);
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.directory.join(file), value).unwrap();
    }

    fn get(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap()
    }

    /// Moves the memory of all processes out. They are frozen afterwards, also when it fails.
    pub fn sleep(&self, pager: Pager) -> Result<Moved, NotMoved> {
        let mut pager = Some(pager);
        loop {
            self.freeze();
            let moved = on_own_thread(|| self.move_out(&mut pager)).unwrap();
            if let Some(moved) = moved {
                return moved;
            }
            self.thaw();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// None when a thread cannot be stopped now: it waits for a child that it made with `vfork`.
    fn move_out(&self, pager: &mut Option<Pager>) -> Option<Result<Moved, NotMoved>> {
        let mut seized = Seized::begin(&self.pids()).unwrap();
        self.thaw();
        if seized.wait_stopped(Duration::from_millis(500)).is_err() {
            return None;
        }
        let moved = pager.take().unwrap().move_out(&mut seized, &|| false);
        self.freeze();
        seized.release().unwrap();
        Some(moved)
    }

    /// Lets all processes run and begins to fill.
    pub fn wake(&self, moved: Moved) -> Result<Filling, FillFailed> {
        self.wake_with(moved, FillPolicy::default())
    }

    /// The same, filling in this way.
    pub fn wake_with(&self, moved: Moved, policy: FillPolicy) -> Result<Filling, FillFailed> {
        let (directory, version1) = (self.directory.clone(), self.version1);
        let waking = moved.begin_wake(policy, move || thaw(&directory, version1))?;
        let (filling, _) = waking.wait()?;
        Ok(filling)
    }

    /// Kills everything in it. A child that is made meanwhile is killed when its turn comes.
    pub fn kill(&self) {
        self.thaw();
        let mut pids = self.pids();
        while !pids.is_empty() {
            for pid in pids {
                // SAFETY: takes numbers. The processes are those of a cgroup of this test's own.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(1));
            pids = self.pids();
            // Children of this process stay until it waits for them.
            pids.retain(|pid| !is_zombie(*pid));
        }
    }
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .is_none_or(|stat| {
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with('Z'))
        })
}

impl Drop for Cage {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        self.kill();
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.directory.exists() && fs::remove_dir(&self.directory).is_err() {
            if Instant::now() > deadline {
                eprintln!("{} is left", self.directory.display());
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
