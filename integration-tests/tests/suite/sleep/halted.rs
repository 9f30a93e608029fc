//! A wake that takes as long as a test wants.

use std::fs;
use std::marker::PhantomData;

use anyhow::{Context, Result, ensure};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use podmotion_integration_tests::{Container, Node};

/// The shim's thread that has a container's memory, which stands still until this is dropped.
pub(super) struct Halted {
    thread: Pid,
    /// The kernel takes a tracer's requests from no other thread.
    _here: PhantomData<*const ()>,
}

impl Halted {
    pub(super) fn pager(node: &Node, container: &Container) -> Result<Self> {
        let tasks = format!("/proc/{}/task", node.shim_of(container.id())?.pid);
        let mut found = Vec::new();
        for task in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
            let path = task?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "pager") {
                found.push(path.file_name().context("no name")?.to_owned());
            }
        }
        ensure!(found.len() == 1, "threads of that name: {found:?}");
        let thread = Pid::from_raw(found[0].to_string_lossy().parse()?);
        ptrace::seize(thread, ptrace::Options::empty()).context("seize a thread")?;
        let halted = Self {
            thread,
            _here: PhantomData,
        };
        ptrace::interrupt(thread).context("interrupt a thread")?;
        waitpid(thread, Some(WaitPidFlag::__WALL)).context("wait for a thread to stop")?;
        Ok(halted)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // One that is gone needs no detaching.
        let _ = ptrace::detach(self.thread, None);
    }
}
