//! The machine of one run, left exactly once: at the end, or at Ctrl-C.

use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use podmotion_integration_tests::Machine;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code of a program that Ctrl-C has ended, by convention.
const INTERRUPTED: i32 = 130;

/// Namespaces, folders and control groups of this run.
pub struct Stage {
    machine: &'static Machine,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Somebody waits for Ctrl-C: it is no interruption.
    awaited: bool,
    interrupted: bool,
    left: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Enters the machine. The process must have one thread.
pub fn enter() -> Result<Stage> {
    let machine = Machine::enter().context("prepare the machine")?;
    let shared = Arc::new(Shared::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("start the thread that waits for signals")?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt()).context("wait for SIGINT")?,
            signal(SignalKind::terminate()).context("wait for SIGTERM")?,
        )
    };
    let for_thread = Arc::clone(&shared);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            interrupted(machine, &for_thread);
        })
        .context("start a thread")?;
    Ok(Stage { machine, shared })
}

fn interrupted(machine: &Machine, shared: &Shared) {
    let mut state = shared.lock();
    state.interrupted = true;
    shared.changed.notify_all();
    if state.awaited || state.left {
        return;
    }
    // Whoever comes to leave meanwhile waits for the lock, and for good.
    eprintln!("interrupted: taking everything away");
    if let Err(error) = machine.leave() {
        eprintln!("{error:#}");
    }
    process::exit(INTERRUPTED);
}

impl Stage {
    /// Waits for Ctrl-C.
    pub fn wait_for_interrupt(&self) {
        let mut state = self.shared.lock();
        state.awaited = true;
        while !state.interrupted {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes everything away.
    pub fn leave(&self) -> Result<()> {
        let mut state = self.shared.lock();
        state.left = true;
        self.machine.leave().context("take everything away")
    }
}
