//! Programs to stop.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Compiled once for all tests.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<TempDir> = OnceLock::new();
    PROGRAMS
        .get_or_init(|| {
            // Nobody removes it at the end: among what cargo has built it is in nobody's way.
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/root");
            let build = |name: &str, flags: &[&str]| {
                let status = Command::new("cc")
                    .args(flags)
                    .arg("-o")
                    .arg(dir.path().join(name))
                    .arg(source.join(name).with_extension("c"))
                    .status()
                    .expect("cc");
                assert!(status.success(), "{name} does not compile");
            };
            build(
                "victim",
                &[
                    "-O1",
                    "-pthread",
                    "-Wall",
                    "-Wno-unused-result",
                    "-Wno-return-type",
                ],
            );
            if cfg!(target_arch = "x86_64") {
                build("foreign", &["-m32", "-nostdlib", "-static", "-fno-pie"]);
            }
            dir
        })
        .path()
}

/// One running program. Killed when dropped.
pub struct Victim {
    child: Child,
    output: BufReader<ChildStdout>,
    shared: fs::File,
    /// Lines that it wrote before it was ready.
    pub said: Vec<String>,
    _dir: TempDir,
}

impl Victim {
    pub fn start(arguments: &[&str]) -> Self {
        let mut victim = Self::spawn("victim", arguments);
        loop {
            let line = victim.line();
            if line == "ready" {
                return victim;
            }
            victim.said.push(line);
        }
    }

    pub fn foreign() -> Self {
        Self::spawn("foreign", &["-"])
    }

    fn spawn(program: &str, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("shared");
        fs::write(&path, [0; 4096]).expect("a file");
        let mut child = Command::new(programs().join(program))
            .arg(arguments[0])
            .arg(&path)
            .args(&arguments[1..])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        Self {
            output: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
            shared: fs::File::open(path).expect("open"),
            said: Vec::new(),
            _dir: dir,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The next line that it writes; empty once it has ended.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read");
        line.trim().to_owned()
    }

    /// Three numbers on the next line.
    pub fn numbers(&mut self) -> (i64, i64, f64) {
        let line = self.line();
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap_or_else(|| panic!("{line:?}"));
        let (first, second) = (
            next().parse().expect("number"),
            next().parse().expect("number"),
        );
        (first, second, next().parse().expect("number"))
    }

    /// A word of the memory that it shares.
    pub fn word(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.shared
            .read_exact_at(&mut bytes, index * 8)
            .expect("read");
        u64::from_ne_bytes(bytes)
    }

    /// Waits until `done`.
    pub fn wait_until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what} does not come");
            std::thread::yield_now();
        }
    }

    /// Waits until a thread has gone to sleep in the kernel.
    pub fn wait_asleep(&self, tid: i32) {
        self.wait_until("sleep", |_| self.state(tid) == 'S');
    }

    /// State of a thread as in its `stat` file.
    pub fn state(&self, tid: i32) -> char {
        let text =
            fs::read_to_string(format!("/proc/{}/task/{tid}/stat", self.pid())).expect("stat");
        let (_, rest) = text.rsplit_once(") ").expect("stat");
        rest.chars().next().expect("stat")
    }

    /// Writes a byte into the pipe that it has named.
    pub fn poke(&self) {
        let fd = self.said[0].strip_prefix("fds ").expect("a descriptor");
        let path = format!("/proc/{}/fd/{fd}", self.pid());
        let mut pipe = fs::OpenOptions::new().write(true).open(path).expect("open");
        pipe.write_all(b"x").expect("write");
    }

    pub fn signal(&self, signal: i32) {
        signal_process(self.pid(), signal);
    }

    /// Its exit status.
    pub fn end(mut self) -> std::process::ExitStatus {
        self.child.wait().expect("wait")
    }
}

pub fn signal_process(pid: i32, signal: i32) {
    let status = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .status();
    assert!(status.expect("kill").success());
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
