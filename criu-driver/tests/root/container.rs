//! A container started by runc, from a root file system that shows the host's.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podmotion_criu_driver::{
    Criu, DumpControl, DumpFailure, DumpReport, DumpRequest, InheritedPipe, LogLevel, Namespace,
    RestoreFailure, RestoreRequest, Restored, Subject, Veto, Written, images, mounts,
};
use rustix::process::{Pid, WaitOptions};
use tempfile::TempDir;

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub fn cache() -> PathBuf {
    std::env::var_os("PODMOTION_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            Path::new(&std::env::var_os("HOME").expect("HOME")).join(".cache/podmotion")
        })
}

pub fn criu() -> Criu {
    let criu = Criu::new(cache().join("criu/bin/criu"), LogLevel::Info);
    criu.features().expect("CRIU's features");
    criu
}

/// One container, gone when dropped.
pub struct Container {
    pub id: String,
    pub dir: TempDir,
    pub pid: i32,
    pub address: String,
    pub output: fs::File,
    pub subject: Subject,
    runc: PathBuf,
    netns: String,
    link: String,
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("run a command");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(arguments: &str) -> String {
    run(Command::new("ip").args(arguments.split(' ')))
}

/// What the container runs and how.
pub struct Options {
    pub script: &'static str,
    pub arguments: Vec<String>,
}

impl Container {
    pub fn start(options: Options) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unique = std::process::id() % 1000 * 60 + number % 60;
        let id = format!("pmtest{unique}");
        let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let (third, fourth) = (unique / 250 % 250, unique % 250);
        let netns = id.clone();
        let link = format!("pm{unique}");
        ip(&format!("netns add {netns}"));
        ip(&format!(
            "link add {link} type veth peer name eth0 netns {netns}"
        ));
        ip(&format!("addr add 10.{third}.{fourth}.1/24 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {netns} link set lo up"));
        ip(&format!(
            "-n {netns} addr add 10.{third}.{fourth}.2/24 dev eth0"
        ));
        ip(&format!("-n {netns} link set eth0 up"));
        let address = format!("10.{third}.{fourth}.2:8000");
        make_bundle(dir.path(), &netns, &options, &id);

        let runc = cache().join("runc-1.3/bin/runc");
        let (output, theirs) = rustix::pipe::pipe().expect("a pipe");
        let (stdin, _never) = rustix::pipe::pipe().expect("a pipe");
        let pid_file = dir.path().join("pid");
        let status = Command::new(&runc)
            .arg("--root")
            .arg(dir.path().join("state"))
            .args(["run", "--detach", "--pid-file"])
            .arg(&pid_file)
            .arg("--bundle")
            .arg(dir.path())
            .arg(&id)
            .stdin(Stdio::from(stdin.try_clone().expect("copy")))
            .stdout(Stdio::from(theirs.try_clone().expect("copy")))
            .stderr(Stdio::from(theirs.try_clone().expect("copy")))
            .status()
            .expect("runc");
        assert!(status.success(), "runc run");
        let pid = fs::read_to_string(&pid_file)
            .expect("pid file")
            .parse()
            .expect("a pid");
        let subject = subject(pid, dir.path(), &netns, theirs, stdin);
        let container = Self {
            id,
            dir,
            pid,
            address,
            output: fs::File::from(output),
            subject,
            runc,
            netns,
            link,
        };
        container.wait_up();
        container
    }

    pub fn server(megabytes: u32) -> Self {
        Self::start(Options {
            script: SERVER,
            arguments: vec![megabytes.to_string()],
        })
    }

    fn wait_up(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let stream = loop {
            match TcpStream::connect(&self.address) {
                Ok(stream) => break stream,
                Err(_) => assert!(Instant::now() < deadline, "{} does not listen", self.id),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        leave(stream);
    }

    pub fn connect(&self) -> TcpStream {
        let address: SocketAddr = self.address.parse().expect("an address");
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("timeout");
        stream
    }

    pub fn ask(&self, question: &str) -> String {
        let mut stream = self.connect();
        let answer = ask(&mut stream, question);
        leave(stream);
        answer
    }

    pub fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn dump(&self, criu: &Criu) -> Result<DumpReport, DumpFailure> {
        let control = DumpControl::new().expect("control");
        self.dump_with(criu, &control, &|_| Ok(()))
    }

    pub fn dump_with(
        &self,
        criu: &Criu,
        control: &DumpControl,
        commit: &dyn Fn(Written) -> Result<(), Veto>,
    ) -> Result<DumpReport, DumpFailure> {
        images::create(&self.images()).expect("images");
        images::create(&self.work()).expect("work");
        let (images, work) = (self.images(), self.work());
        let request = DumpRequest::new(self.pid, &images, &work);
        criu.dump(&self.subject, &request, control, commit)
    }

    pub fn restore(&mut self, criu: &Criu, lazy: bool) -> Result<Restored, RestoreFailure> {
        let (images, work) = (self.images(), self.work());
        let mut request = RestoreRequest::new(&images, &work);
        request.lazy = lazy;
        let restored = criu.restore(&self.subject, &request)?;
        self.pid = restored.pid;
        Ok(restored)
    }

    /// Processes in the container's cgroup.
    pub fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.freezer().join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    pub fn freezer(&self) -> PathBuf {
        self.subject.freezer.clone().expect("a freezer")
    }

    /// What the container has written until now.
    pub fn read_output(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.output.read_exact(&mut bytes).expect("read the pipe");
        bytes
    }
}

/// The answer, received and acknowledged: these tests have no gate that would keep a late
/// acknowledgement from a connection whose socket is in images.
pub fn ask(stream: &mut TcpStream, question: &str) -> String {
    stream.write_all(question.as_bytes()).expect("ask");
    stream.write_all(b"\n").expect("ask");
    let mut answer = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).expect("answer") == 1 && byte[0] != b'\n' {
        answer.push(byte[0]);
    }
    rustix::net::sockopt::set_tcp_quickack(stream, true).expect("acknowledge");
    String::from_utf8(answer).expect("text")
}

/// Ends a connection, and returns when the server has closed its end: in a dump it would be one more connection, which
/// cannot be restored a second time while the end of the first one is still on its way.
fn leave(mut stream: TcpStream) {
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("end the questions");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the server's end");
    assert!(rest.is_empty(), "{rest:?}");
}

impl Drop for Container {
    fn drop(&mut self) {
        for pid in self.processes() {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
        let _ = Command::new(&self.runc)
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .args(["delete", "--force", &self.id])
            .output();
        let _ = Command::new("ip")
            .args(["link", "del", &self.link])
            .output();
        let _ = Command::new("ip")
            .args(["netns", "del", &self.netns])
            .output();
    }
}

/// The host's programs and libraries, read-only, in an otherwise empty root.
fn make_bundle(dir: &Path, netns: &str, options: &Options, id: &str) {
    let root = dir.join("rootfs");
    for name in [
        "usr", "etc", "tmp", "proc", "sys", "dev", "var", "data", "lib64",
    ] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    for name in ["bin", "sbin", "lib"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("a link");
    }
    fs::write(root.join("server.py"), options.script).expect("the script");
    fs::create_dir(dir.join("data")).expect("a directory");
    fs::create_dir(dir.join("inner")).expect("a directory");
    fs::create_dir(dir.join("data/inner")).expect("a directory");
    fs::write(dir.join("hosts"), "127.0.0.1 localhost\n").expect("hosts");
    fs::write(root.join("etc/hosts"), "").expect("hosts");
    let spec = run(Command::new(cache().join("runc-1.3/bin/runc"))
        .current_dir(dir)
        .args(["spec", "--bundle"])
        .arg(dir));
    assert!(spec.is_empty());
    let path = dir.join("config.json");
    let mut spec: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("spec")).expect("JSON");
    let mut arguments = vec![
        "/usr/bin/python3.11".to_owned(),
        "-u".into(),
        "/server.py".into(),
    ];
    arguments.extend(options.arguments.iter().cloned());
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = arguments.into();
    spec["root"]["readonly"] = false.into();
    spec["hostname"] = serde_json::Value::Null;
    spec["linux"]["cgroupsPath"] = format!("/podmotion-test/{id}").into();
    for namespace in spec["linux"]["namespaces"]
        .as_array_mut()
        .expect("namespaces")
    {
        if namespace["type"] == "network" {
            namespace["path"] = format!("/run/netns/{netns}").into();
        }
    }
    let mounts = spec["mounts"].as_array_mut().expect("mounts");
    let bind = |source: &Path, destination: &str, extra: &[&str]| {
        let mut options = vec!["rbind"];
        options.extend(extra);
        serde_json::json!({
            "destination": destination, "type": "bind", "source": source, "options": options,
        })
    };
    mounts.push(bind(Path::new("/usr"), "/usr", &["ro", "rprivate"]));
    mounts.push(bind(Path::new("/lib64"), "/lib64", &["ro", "rprivate"]));
    mounts.push(bind(&dir.join("hosts"), "/etc/hosts", &["rprivate"]));
    mounts.push(bind(&dir.join("data"), "/data", &["rslave"]));
    mounts.push(bind(&dir.join("inner"), "/data/inner", &["ro", "rprivate"]));
    mounts.push(serde_json::json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
    }));
    fs::write(&path, serde_json::to_vec(&spec).expect("JSON")).expect("spec");
}

fn subject(pid: i32, dir: &Path, netns: &str, output: OwnedFd, stdin: OwnedFd) -> Subject {
    let spec = podmotion_criu_driver::spec::Spec::read(dir).expect("spec");
    let mut join = Vec::new();
    let file = fs::File::open(format!("/run/netns/{netns}")).expect("netns");
    join.push((Namespace::Network, file.into()));
    let mut cgroups = Vec::new();
    let mut freezer = None;
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroups");
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().expect("name"), fields.next().expect("path"));
        let name = match controllers {
            "" => "unified",
            name => name.strip_prefix("name=").unwrap_or(name),
        };
        let directory = Path::new("/sys/fs/cgroup").join(name).join(&path[1..]);
        if !directory.is_dir() || path == "/" {
            continue;
        }
        if name == "freezer" {
            freezer = Some(directory.clone());
        }
        cgroups.push(directory);
    }
    Subject {
        rootfs: dir.join("rootfs"),
        mounts: mounts::external(&spec, pid).expect("mounts"),
        join,
        cgroups,
        freezer,
        stdio: vec![
            InheritedPipe::new(output).expect("pipe"),
            InheritedPipe::new(stdin).expect("pipe"),
        ],
    }
}

/// Answers lines on port 8000; state is a counter and a block of memory.
pub const SERVER: &str = include_str!("server.py");
