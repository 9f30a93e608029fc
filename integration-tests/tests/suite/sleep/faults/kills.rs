//! The shim is killed again and again, in every moment of light sleep. Each time the container goes on with every
//! byte of its memory, or waits for what is missing until it is ended, and is reported.
//!
//! ```text
//! each round:  some containers at once, each asleep and awake as often as it happens
//!              containerd stopped, so that nobody ends them for now (in every second round)
//!              each shim: wait for a moment, stop it or not, look what the moment is, SIGKILL
//!              each container: thaw it, whatever it was; it goes on, or waits for a page, or is dead
//!              containerd goes on: an exit for each, and nothing is left of any
//! ```

mod moment;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use podmotion_integration_tests::{
    App, Census, Container, Depth, Image, Network, Node, PATIENCE, Random, Runtime, soak, thaw,
    wait_gone,
};
use rustix::process::{Pid, Signal, kill_process};

use moment::{Moment, View};

use crate::sleep::{compile, drop_with_shim};

/// Containers of one round.
const AT_ONCE: u64 = 5;
/// Memory of each, in MiB.
const MEMORY: u32 = 24;

/// Moments of the kills: how often the shim stood still for the look, and how often it did not.
type Tally = BTreeMap<Moment, [u32; 2]>;

pub(super) fn shims(node: &Node, _: Runtime) -> Result<()> {
    ensure!(node.depth() == Depth::Light);
    let random = Random::of_this_run();
    let kills = if soak() { 300 } else { 40 };
    // In memory: a witness that waits for a disk cannot be frozen.
    let folder = node.run_folder().join("witness");
    fs::create_dir_all(&folder).context("make a folder")?;
    compile(
        "tests/suite/sleep/faults/kills/witness.c",
        &folder.join("witness"),
    )?;
    // Makes what a first container makes for good, so that a count before does not miss it.
    let first = Witness::start(node, &folder)?;
    first.container.sleep()?;
    first.container.wake()?;
    drop_with_shim(first.container)?;
    let before = Census::take()?;

    let tally = Mutex::new(Tally::new());
    for round in 0..kills / AT_ONCE {
        kill_some(node, &folder, &random, round, &tally).with_context(|| {
            format!("round {round}, after {:?}", tally.lock().map(|t| t.clone()))
        })?;
        Census::wait_as_before(&before)?;
    }
    let tally = tally
        .into_inner()
        .map_err(|_| anyhow!("a thread panicked"))?;
    println!("kills by moment, [looked at while stopped, looked at while running]: {tally:?}");
    if soak() {
        for moment in Moment::ALL {
            let hit = tally.get(&moment).is_some_and(|[stopped, _]| *stopped > 0);
            ensure!(hit, "no kill {moment:?}: {tally:?}");
        }
    }
    fs::remove_dir_all(&folder).context("remove a folder")
}

/// A container that watches its own memory.
struct Witness {
    container: Container,
    book: PathBuf,
    pid: i32,
    group: String,
    shim: Pid,
}

impl Witness {
    fn start(node: &Node, folder: &Path) -> Result<Self> {
        let name = format!("book-{}", node.next_id());
        let app = App::new(["/w/witness", &MEMORY.to_string(), &format!("/w/{name}")])
            .image(Image::Busybox)
            .mount(folder, "/w")
            .network(Network::Own)
            .ports(&[8080])
            .annotation("scaledown-duration", "1h")
            .annotation("deep-sleep-after", "never");
        let container = node.run(app)?;
        container.stdout()?.wait_for("ready")?;
        container
            .sleeper()
            .wait_until("a place at the gate", |status| {
                status.awake_reason.is_some()
            })?;
        let shim = Pid::from_raw(node.shim_of(container.id())?.pid).context("pid 0")?;
        Ok(Self {
            book: folder.join(name),
            pid: container.pid()?.try_into()?,
            group: container.cgroup()?,
            container,
            shim,
        })
    }

    /// How often it has seen all of its memory, which must have been right.
    fn passes(&self) -> Result<u64> {
        let bytes = fs::read(&self.book).with_context(|| format!("read {:?}", self.book))?;
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| word.try_into().map(u64::from_ne_bytes))
            .collect::<Result<_, _>>()?;
        let &[passes, wrong, page, expected, found] = words.as_slice() else {
            bail!("{:?} has {} bytes", self.book, bytes.len());
        };
        ensure!(
            wrong == 0,
            "after {passes} passes page {page} has {found:#x} in place of {expected:#x}"
        );
        Ok(passes)
    }

    /// Asleep and awake, once.
    fn cycle(&self) -> Result<()> {
        self.container.sleep()?;
        self.container.wake()?;
        self.container
            .sleeper()
            .wait_until("all of its memory", |status| {
                status.state == "running" && status.awake_reason.is_some()
            })
            .map(drop)
    }

    /// Kills the shim in that moment, or soon after. Returns the moment as it was, and whether the shim stood
    /// still for the look.
    fn kill_in(&self, wanted: Moment, random: &mut Random) -> Result<(Moment, bool)> {
        let mut view = View {
            pid: self.pid,
            group: &self.group,
            asleep_kib: None,
        };
        let falls = matches!(
            wanted,
            Moment::StandingStill | Moment::Copying | Moment::Taking
        );
        let rises = matches!(
            wanted,
            Moment::Waking | Moment::Prefetching | Moment::Filling
        );
        if rises || wanted == Moment::Asleep {
            self.container.sleep()?;
        }
        if rises {
            view.asleep_kib = Some(moment::memory(self.pid)?.there_kib);
        }
        let still = random.below(2) == 0;
        thread::scope(|scope| {
            // Fails with the shim.
            let asked = scope.spawn(|| match (falls, rises) {
                (true, _) => self.container.sleeper().try_sleep(),
                (_, true) => self.container.wake(),
                _ => Ok(()),
            });
            let over = || asked.is_finished();
            let moment = if still {
                self.step_to(wanted, &view, over, random)?
            } else {
                while view.moment()? != wanted && !over() {
                    thread::yield_now();
                }
                spin(random.below(2000));
                view.moment()?
            };
            kill_process(self.shim, Signal::KILL).context("kill the shim")?;
            wait_gone(self.shim.as_raw_nonzero().get(), PATIENCE)?;
            Ok((moment, still))
        })
    }

    /// Lets the shim run a little and stops it, again and again, until a moment has come or can come no more, and
    /// then for some more steps. It is stopped in the moment that is returned.
    fn step_to(
        &self,
        wanted: Moment,
        view: &View<'_>,
        over: impl Fn() -> bool,
        random: &mut Random,
    ) -> Result<Moment> {
        let mut more = random.below(4);
        loop {
            let may_come = !over();
            moment::stop(self.shim)?;
            let moment = view.moment()?;
            let comes = moment == wanted || !may_come;
            if comes && more == 0 {
                return Ok(moment);
            }
            more -= u64::from(comes);
            kill_process(self.shim, Signal::CONT).context("continue a process")?;
            spin(random.below(50));
        }
    }

    /// Nobody has ended it yet, and somebody thaws it: it goes on, or waits, or went with the shim.
    fn ensure_goes_on_or_waits(&self, moment: Moment, exact: bool) -> Result<()> {
        thaw(&self.group)?;
        let before = self.passes()?;
        let mut waits = false;
        moment::wait("progress", || {
            // For a page that is missing, and not for one of its program's file.
            waits = moment::waits_for_a_page(self.pid)
                && moment::memory(self.pid).is_ok_and(|memory| memory.out);
            Ok(waits || moment::has_ended(self.pid) || self.passes()? > before + 2)
        })?;
        // Whether a moment that was seen in passing was over, nobody knows.
        if moment::has_ended(self.pid) {
            ensure!(moment.is_traced() || !exact, "it has ended by itself");
        } else if waits {
            ensure!(
                !(exact && moment.is_whole()),
                "it waits, and nothing of it was missing"
            );
        }
        self.passes().map(drop)
    }

    /// Ended, and everybody knows.
    fn ensure_reported(&self) -> Result<()> {
        let node = self.container.node();
        let exit = node.events().wait_for_exit(self.container.id())?;
        ensure!(exit.exit_status == 137, "{exit:?}");
        node.events()
            .wait_for(self.container.id(), "/tasks/delete")?;
        ensure!(self.container.state().is_err(), "the task is still there");
        ensure!(moment::has_ended(self.pid), "its process is still there");
        self.passes()?;
        fs::remove_file(&self.book).context("remove its book")
    }
}

/// A time too short to sleep. There is no event in the middle of a moment.
fn spin(microseconds: u64) {
    let until = Instant::now() + Duration::from_micros(microseconds);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// containerd, stopped until this is dropped.
struct Halted(Pid);

impl Halted {
    fn new(node: &Node) -> Result<Self> {
        let pid = node.pid().context("containerd does not run")?;
        let pid = Pid::from_raw(pid.try_into()?).context("pid 0")?;
        let halted = Self(pid);
        moment::stop(pid)?;
        Ok(halted)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // It is a child of this process: its pid is nobody else's.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Runs `work` for each, all at once.
fn each<T: Sync, R: Send>(
    all: &[T],
    work: impl Fn(usize, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(number, one)| scope.spawn(move || work(number, one)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect()
    })
}

fn kill_some(
    node: &Node,
    folder: &Path,
    random: &Random,
    round: u64,
    tally: &Mutex<Tally>,
) -> Result<()> {
    let numbers: Vec<u64> = (0..AT_ONCE).map(|n| round * AT_ONCE + n).collect();
    let all = each(&numbers, |_, _| Witness::start(node, folder))?;
    each(&all, |n, witness| {
        let number = numbers[n];
        // A first wake has nothing to bring back before it runs.
        let mut random = random.apart(number);
        let cycles = match wanted(number) {
            Moment::Prefetching => 2 + random.below(2),
            _ => random.below(3),
        };
        (0..cycles).try_for_each(|_| witness.cycle())
    })?;
    let halted = round
        .is_multiple_of(2)
        .then(|| Halted::new(node))
        .transpose()?;
    each(&all, |n, witness| {
        let mut random = random.apart(!numbers[n]);
        let (moment, exact) = witness
            .kill_in(wanted(numbers[n]), &mut random)
            .with_context(|| format!("kill in {:?}", wanted(numbers[n])))?;
        let mut tally = tally.lock().map_err(|_| anyhow!("a thread panicked"))?;
        tally.entry(moment).or_default()[usize::from(!exact)] += 1;
        drop(tally);
        if halted.is_some() {
            witness
                .ensure_goes_on_or_waits(moment, exact)
                .with_context(|| format!("killed in {moment:?}, exact: {exact}"))?;
        }
        Ok(())
    })?;
    drop(halted);
    each(&all, |_, witness| witness.ensure_reported())?;
    Ok(())
}

/// The moment for a kill. The long ones come by themselves.
fn wanted(number: u64) -> Moment {
    Moment::ALL[number as usize % Moment::ALL.len()]
}
