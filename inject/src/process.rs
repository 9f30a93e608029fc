//! One process, all of whose threads are stopped.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::error::Error;
use crate::instruction;
use crate::rseq;
use crate::state::ThreadState;
use crate::sys::{self, Alarm, Registers, VECTOR_SETS};
use crate::thread::{Deadline, Place, Thread};

/// A process of a [`Seized`](crate::Seized).
pub struct Process {
    pid: i32,
    pub(crate) threads: Vec<Thread>,
    pub(crate) past_seccomp: bool,
    memory: fs::File,
    pagemap: fs::File,
    instruction: Option<u64>,
    alarm: Rc<Alarm>,
}

/// Time for one system call. Making it longer than any that has a use costs nothing.
const CALL_TIME: Duration = Duration::from_secs(30);

/// The kernel's ERESTARTSYS, ERESTARTNOINTR and ERESTARTNOHAND, negative: the call was interrupted
/// and is to be made again.
const AGAIN: [i64; 3] = [-512, -513, -514];

impl Process {
    /// Opens what is needed of a process; `None` when it is gone.
    pub(crate) fn open(pid: i32, alarm: &Rc<Alarm>) -> Result<Option<Self>, Error> {
        let open = |name: &str, write: bool| {
            let path = PathBuf::from(format!("/proc/{pid}/{name}"));
            match fs::OpenOptions::new().read(true).write(write).open(&path) {
                Ok(file) => Ok(Some(file)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
                Err(source) => Err(Error::Proc {
                    operation: "open",
                    path,
                    source,
                }),
            }
        };
        let (Some(memory), Some(pagemap)) = (open("mem", true)?, open("pagemap", false)?) else {
            return Ok(None);
        };
        Ok(Some(Self {
            pid,
            threads: Vec::new(),
            past_seccomp: true,
            memory,
            pagemap,
            instruction: None,
            alarm: Rc::clone(alarm),
        }))
    }

    /// Its pid in the pid namespace of this process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ids of its stopped threads, the leader first unless that has ended.
    pub fn threads(&self) -> impl Iterator<Item = i32> {
        self.threads
            .iter()
            .filter(|thread| thread.place == Place::Stopped)
            .map(|thread| thread.tid)
    }

    /// Whether system calls made here pass its seccomp filters. False where the kernel has not allowed
    /// it (no `CAP_SYS_ADMIN`, or a filter on this process): then a call can fail or be fatal in a
    /// process that has filters.
    pub fn is_past_seccomp(&self) -> bool {
        self.past_seccomp
    }

    /// Has it run one system call, in its first live thread, as if its own code had made it. Returns
    /// the kernel's answer: -4095 to -1 are negative error numbers.
    ///
    /// Pointers among the arguments are to its memory. The call must not be one that waits with a time
    /// limit (it would overwrite what the kernel keeps for one that was interrupted), that changes the
    /// calling thread's registers or signal mask, or that ends it.
    ///
    /// Between two calls the thread has its own registers again: should this process die, it goes on.
    /// During a call it has not, and its process is killed then.
    ///
    /// # Errors
    /// [`Error::Gone`] when the thread ends meanwhile, [`Error::Stuck`] when the call takes longer than
    /// 30 seconds. No other thread is tried.
    pub fn syscall(&mut self, number: i64, arguments: [u64; 6]) -> Result<i64, Error> {
        let pid = self.pid;
        let thread = self
            .threads
            .iter_mut()
            .find(|thread| thread.place == Place::Stopped)
            .ok_or(Error::Gone { pid })?;
        let tid = thread.tid;
        let dispatches = sys::dispatches_syscalls(tid);
        if thread.value("ask about", dispatches)? {
            return Err(Error::Dispatched { pid, tid });
        }
        let registers = thread.registers()?;
        let at = match self.instruction {
            Some(at) => at,
            None => *self
                .instruction
                .insert(instruction::find(pid, &self.memory)?),
        };
        let own = rseq::left(tid, registers, &self.memory, &self.pagemap);
        let own = thread.value("read the restartable sequence of", own)?;
        let blocked = thread.value("read the signal mask of", sys::signal_mask(tid))?;
        let call = own.calling(at, number.cast_unsigned(), arguments);
        let deadline = Deadline::after(CALL_TIME);
        thread.value("set the options of", sys::die_with_tracer(tid, true))?;
        thread.calling = true;
        let answer = loop {
            thread.value(
                "set the signal mask of",
                sys::set_signal_mask(tid, u64::MAX),
            )?;
            thread.value("set the registers of", sys::set_registers(tid, &call))?;
            match thread.make_call(&self.alarm, deadline).map(|r| r.answer()) {
                Ok(again) if AGAIN.contains(&again) => {}
                answer => break answer,
            }
        };
        if thread.place == Place::Stopped {
            thread.value("set the registers of", sys::set_registers(tid, &own))?;
            thread.value("set the signal mask of", sys::set_signal_mask(tid, blocked))?;
            thread.value("set the options of", sys::die_with_tracer(tid, false))?;
            thread.calling = false;
        }
        answer
    }

    /// The general registers of a stopped thread.
    ///
    /// # Errors
    /// [`Error::Gone`] when it has ended.
    pub fn registers(&mut self, tid: i32) -> Result<Registers, Error> {
        self.thread(tid)?.registers()
    }

    /// Address of the `struct rseq` that a stopped thread has registered, where it has one.
    ///
    /// # Errors
    /// [`Error::Gone`] when it has ended.
    pub fn restartable_sequence(&mut self, tid: i32) -> Result<Option<u64>, Error> {
        let area = sys::rseq_area(tid);
        self.thread(tid)?
            .value("ask for the restartable sequence of", area)
    }

    /// All that a stopped thread goes on with. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Gone`] when it has ended.
    pub fn state(&mut self, tid: i32) -> Result<ThreadState, Error> {
        let registers = self.thread(tid)?.registers()?;
        let registers = rseq::left(tid, registers, &self.memory, &self.pagemap);
        let thread = self.thread(tid)?;
        let registers = thread.value("read the restartable sequence of", registers)?;
        let blocked = thread.value("read the signal mask of", sys::signal_mask(tid))?;
        let mut vector = None;
        for &set in VECTOR_SETS {
            let bytes = sys::register_set(tid, set);
            if let Some(bytes) = thread.value("read the vector registers of", bytes)? {
                vector = Some((set, bytes));
                break;
            }
        }
        Ok(ThreadState {
            tid,
            registers,
            vector,
            blocked,
        })
    }

    /// Has a stopped thread go on from `state`, which must be one of its own. A system call in which
    /// it was then begins again when the thread is released, unless it has made other calls with a time
    /// limit meanwhile: then one with a time limit ends with `EINTR`.
    ///
    /// # Errors
    /// [`Error::Gone`] when it has ended.
    pub fn apply(&mut self, state: &ThreadState) -> Result<(), Error> {
        let tid = state.tid;
        let thread = self.thread(tid)?;
        if let Some((set, bytes)) = &state.vector {
            let result = sys::set_vector_registers(tid, *set, bytes);
            thread.value("set the vector registers of", result)?;
        }
        let result = sys::set_registers(tid, &state.registers);
        thread.value("set the registers of", result)?;
        let result = sys::set_signal_mask(tid, state.blocked);
        thread.value("set the signal mask of", result)
    }

    /// Reads memory, as the process itself could and where it could not.
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let result = self.memory.read_exact_at(bytes, address);
        result.map_err(|source| self.memory_error("read", address, source))
    }

    /// Writes memory, also where the process itself cannot.
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let result = self.memory.write_all_at(bytes, address);
        result.map_err(|source| self.memory_error("write", address, source))
    }

    fn memory_error(&self, operation: &'static str, address: u64, source: std::io::Error) -> Error {
        let pid = self.pid;
        Error::Memory {
            operation,
            pid,
            address,
            source,
        }
    }

    fn thread(&mut self, tid: i32) -> Result<&mut Thread, Error> {
        let pid = self.pid;
        self.threads
            .iter_mut()
            .find(|thread| thread.tid == tid && thread.place == Place::Stopped)
            .ok_or(Error::Gone { pid })
    }
}
