//! A process of its own that opens a connection, under any name and in any namespaces. It is this
//! program, run again.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgid, setuid};

use crate::gate::NodeRules;
use crate::rig::{LONG, Netns, pins};

const NAME: &str = "PODMOTION_TEST_NAME";
const NETNS: &str = "PODMOTION_TEST_NETNS";
const SERVER: &str = "PODMOTION_TEST_SERVER";
const LIKENESS: &str = "PODMOTION_TEST_LIKENESS";

/// What a process has in common with the node's kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// Everything.
    Same,
    /// It has a mount namespace of its own.
    OtherMounts,
    /// It has a PID namespace of its own.
    OtherPids,
    /// It is not root's.
    OtherUser,
}

const LIKENESSES: [Likeness; 4] = [
    Likeness::Same,
    Likeness::OtherMounts,
    Likeness::OtherPids,
    Likeness::OtherUser,
];

/// Takes processes called `kubelet` in this one's namespaces for kubelets, in `pins`.
pub fn admit(pins: &Path) {
    let rules = NodeRules {
        kubelets: vec!["kubelet".into(), "a-name-that-no-process-has".into()],
        ..NodeRules::default()
    };
    rules.tell(pins).unwrap();
}

/// A connection of another process. The process ends when this is dropped.
pub struct Connection {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub local: SocketAddr,
}

impl Connection {
    /// That of a kubelet to `server`.
    pub fn open(from: &Netns, server: SocketAddr) -> Self {
        admit(pins());
        Self::open_as(from, server, "kubelet", Likeness::Same)
    }

    /// Waits until it is established.
    pub fn open_as(from: &Netns, server: SocketAddr, name: &str, likeness: Likeness) -> Self {
        let mut connection = Self::begin(from, server, name, likeness);
        connection.wait();
        connection
    }

    /// Does not wait: [`wait`](Self::wait).
    pub fn begin(from: &Netns, server: SocketAddr, name: &str, likeness: Likeness) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .env(NAME, name)
            .env(NETNS, from.path())
            .env(SERVER, server.to_string())
            .env(LIKENESS, format!("{likeness:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
            local: server,
        }
    }

    pub fn wait(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        self.local = line.trim().parse().unwrap();
    }

    pub fn write(&mut self, data: &[u8]) {
        self.input.as_mut().unwrap().write_all(data).unwrap();
    }

    pub fn read(&mut self, data: &mut [u8]) {
        self.output.read_exact(data).unwrap();
    }

    /// Ends the connection in both directions, and the process.
    pub fn close(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this process is to be one.
pub fn is_wanted() -> bool {
    std::env::var_os(NAME).is_some()
}

/// Connects, says from where, and copies in both directions until its input ends.
pub fn run() {
    let value = |name| std::env::var(name).unwrap();
    let likeness = LIKENESSES
        .into_iter()
        .find(|likeness| format!("{likeness:?}") == value(LIKENESS))
        .unwrap();
    setns(
        fs::File::open(value(NETNS)).unwrap(),
        CloneFlags::CLONE_NEWNET,
    )
    .unwrap();
    // Before it may no longer.
    fs::write("/proc/self/comm", value(NAME)).unwrap();
    match likeness {
        Likeness::Same => {}
        Likeness::OtherMounts => unshare(CloneFlags::CLONE_NEWNS).unwrap(),
        Likeness::OtherPids => {
            unshare(CloneFlags::CLONE_NEWPID).unwrap();
            let status = Command::new("/proc/self/exe")
                .env(LIKENESS, format!("{:?}", Likeness::Same))
                .status();
            assert!(status.unwrap().success());
            return;
        }
        Likeness::OtherUser => {
            setgid(Gid::from_raw(65534)).unwrap();
            setuid(Uid::from_raw(65534)).unwrap();
        }
    }
    let server = value(SERVER).parse().unwrap();
    // As in the kubelet: whoever connects is a thread, which has a name of its own.
    thread::Builder::new()
        .name("dialer".into())
        .spawn(move || copy(server))
        .unwrap()
        .join()
        .unwrap();
}

fn copy(server: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&server, 4 * LONG).unwrap();
    println!("{}", stream.local_addr().unwrap());
    let mut reader = stream.try_clone().unwrap();
    let output = thread::spawn(move || {
        let mut byte = [0; 512];
        while let Ok(length @ 1..) = reader.read(&mut byte) {
            let mut stdout = io::stdout();
            if stdout
                .write_all(&byte[..length])
                .and_then(|()| stdout.flush())
                .is_err()
            {
                break;
            }
        }
    });
    io::copy(&mut io::stdin(), &mut stream).unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    output.join().unwrap();
}
