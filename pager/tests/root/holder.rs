//! A program that holds memory and looks at it when it is told.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::cage::Cage;
use crate::victim::{compiled, proc};

pub struct Holder {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Holder {
    pub fn start(cage: &Cage, megabytes: u32) -> Self {
        Self::start_as(cage, megabytes, 0)
    }

    /// As a user, with no capabilities unless that is 0.
    pub fn start_as(cage: &Cage, megabytes: u32, user: u32) -> Self {
        let arguments = [megabytes.to_string(), user.to_string()];
        Self::start_program(cage, &compiled("holder", &["holder.c"]), &arguments)
    }

    /// Another program that says "ready" and then answers in lines.
    pub fn start_program(cage: &Cage, program: &Path, arguments: &[String]) -> Self {
        let mut child = cage
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Self {
            child,
            orders,
            answers,
        };
        assert_eq!(holder.answer(), "ready");
        holder
    }

    /// Bytes of its memory that are in huge pages.
    pub fn huge_bytes(&self) -> u64 {
        let smaps = proc(self.child.id(), "smaps_rollup");
        let huge = smaps
            .lines()
            .find_map(|line| line.strip_prefix("AnonHugePages:"));
        let kib: u64 = huge
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib << 10
    }

    /// Tells it something, without waiting for the answer.
    pub fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    /// Its next answer; empty when it has ended.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn ask(&mut self, order: &str) -> String {
        self.order(order);
        self.answer()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A number of `/proc/PID/status`, in kB.
    pub fn status(&self, key: &str) -> u64 {
        let status = proc(self.pid(), "status");
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Whether a mapping of it is registered with a userfaultfd.
    pub fn is_registered(&self) -> bool {
        proc(self.pid(), "smaps")
            .lines()
            .filter_map(|line| line.strip_prefix("VmFlags:"))
            .flat_map(str::split_ascii_whitespace)
            .any(|flag| ["um", "uw", "ui"].contains(&flag))
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may be frozen; its cage ends it then.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}
