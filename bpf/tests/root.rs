//! Loading, pinning and attaching, on a BPF file system mounted for it. Needs root.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use aya::maps::{HashMap, MapData};
use aya::programs::ProgramInfo;
use aya::programs::links::{FdLink, PinnedLink};
use libtest_mimic::{Arguments, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use podmotion_bpf::loader::{Build, LoadError, Outcome, load_and_pin, load_and_pin_build, unpin};
use podmotion_bpf::{
    GATE_PROGRAM, Kubelets, MapError, Maps, Method, NetnsValue, SOCKOPS_PROGRAM, TAP_PROGRAM,
    attach, is_attached, netns,
};

fn main() {
    let arguments = Arguments::from_args();
    if !nix::unistd::geteuid().is_root() {
        if std::env::var_os("PODMOTION_SKIP_ROOT").is_some_and(|value| value == "1") {
            return;
        }
        eprintln!("these tests need root; PODMOTION_SKIP_ROOT=1 skips them");
        std::process::exit(1);
    }
    let tests: [(&str, fn()); 11] = [
        (
            "loading_again_changes_nothing",
            loading_again_changes_nothing,
        ),
        (
            "a_program_of_another_build_is_replaced",
            a_program_of_another_build_is_replaced,
        ),
        (
            "a_program_on_other_maps_is_replaced",
            a_program_on_other_maps_is_replaced,
        ),
        (
            "a_map_of_another_layout_is_refused",
            a_map_of_another_layout_is_refused,
        ),
        (
            "the_link_follows_the_program_that_notes_probes",
            the_link_follows_the_program_that_notes_probes,
        ),
        (
            "without_what_probes_need_the_gate_is_there",
            without_what_probes_need_the_gate_is_there,
        ),
        (
            "whoever_finds_the_gate_finds_the_rest",
            whoever_finds_the_gate_finds_the_rest,
        ),
        (
            "loaders_at_the_same_time_agree",
            loaders_at_the_same_time_agree,
        ),
        (
            "each_build_loads_and_the_faster_one_is_taken",
            each_build_loads_and_the_faster_one_is_taken,
        ),
        ("removing_leaves_nothing", removing_leaves_nothing),
        (
            "attaches_both_ways_and_detaches",
            attaches_both_ways_and_detaches,
        ),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            Trial::test(format!("bpf::{name}"), move || {
                test();
                Ok(())
            })
        })
        .collect();
    if !arguments.list {
        private_bpffs();
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn private_bpffs() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(
        Some("bpf"),
        "/sys/fs/bpf",
        Some("bpf"),
        MsFlags::empty(),
        none,
    )
    .unwrap();
}

/// A pin directory of the test's own.
fn dir(test: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(test).join("v1")
}

fn id(dir: &Path, program: &str) -> u32 {
    ProgramInfo::from_pin(dir.join(program)).unwrap().id()
}

fn outcome(outcomes: &[(&'static str, Outcome)], name: &str) -> Outcome {
    outcomes.iter().find(|(found, _)| *found == name).unwrap().1
}

fn loading_again_changes_nothing() {
    let dir = dir("again");
    let outcomes = load_and_pin(&dir).unwrap().pins;
    assert!(
        outcomes
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Created)
    );
    assert_eq!(outcomes.len(), 15);
    let before = (id(&dir, GATE_PROGRAM), id(&dir, TAP_PROGRAM));
    let outcomes = load_and_pin(&dir).unwrap().pins;
    assert!(
        outcomes
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Unchanged)
    );
    assert_eq!((id(&dir, GATE_PROGRAM), id(&dir, TAP_PROGRAM)), before);
}

fn a_program_of_another_build_is_replaced() {
    let dir = dir("replaced");
    load_and_pin(&dir).unwrap();
    let value = NetnsValue {
        tap_ifindex: 1,
        eth_ifindex: 2,
        other_activity: 3,
        other_probe: 4,
    };
    Maps::open(&dir).unwrap().netns.insert(&7, &value).unwrap();
    // Another program in its place stands for another build of it.
    fs::remove_file(dir.join(GATE_PROGRAM)).unwrap();
    fs::rename(dir.join(TAP_PROGRAM), dir.join(GATE_PROGRAM)).unwrap();
    let outcomes = load_and_pin(&dir).unwrap().pins;
    assert_eq!(outcome(&outcomes, GATE_PROGRAM), Outcome::Replaced);
    assert_eq!(outcome(&outcomes, TAP_PROGRAM), Outcome::Created);
    let info = ProgramInfo::from_pin(dir.join(GATE_PROGRAM)).unwrap();
    assert_eq!(info.name_as_str(), Some(GATE_PROGRAM));
    assert_eq!(
        Maps::open(&dir).unwrap().netns.get(&7).unwrap(),
        Some(value)
    );
    assert!(!dir.join("gate_ingress_new").exists());
}

fn a_program_on_other_maps_is_replaced() {
    let dir = dir("maps");
    load_and_pin(&dir).unwrap();
    fs::remove_file(dir.join("flows")).unwrap();
    let outcomes = load_and_pin(&dir).unwrap().pins;
    assert_eq!(outcome(&outcomes, "flows"), Outcome::Created);
    assert_eq!(outcome(&outcomes, GATE_PROGRAM), Outcome::Replaced);
    assert_eq!(outcome(&outcomes, TAP_PROGRAM), Outcome::Unchanged);
}

fn a_map_of_another_layout_is_refused() {
    let dir = dir("layout");
    load_and_pin(&dir).unwrap();
    let before = id(&dir, GATE_PROGRAM);
    fs::remove_file(dir.join("counters")).unwrap();
    let other = HashMap::<MapData, u32, u32>::create(1, 0).unwrap();
    other.pin(dir.join("counters")).unwrap();
    let error = load_and_pin(&dir).unwrap_err();
    assert!(
        matches!(error, LoadError::Layout(MapError::Layout { .. })),
        "{error:?}"
    );
    assert_eq!(id(&dir, GATE_PROGRAM), before);
}

fn the_link_follows_the_program_that_notes_probes() {
    let dir = dir("link");
    let attached = || {
        let link: FdLink = PinnedLink::from_pin(dir.join("probe_sockops_link"))
            .unwrap()
            .into();
        let info = link.info().unwrap();
        assert_eq!(info.program_id(), id(&dir, SOCKOPS_PROGRAM));
        info.id()
    };
    assert!(load_and_pin(&dir).unwrap().without_probes.is_none());
    let first = attached();
    load_and_pin(&dir).unwrap();
    assert_eq!(attached(), first);
    // On another map it is another program.
    fs::remove_file(dir.join("kubelets")).unwrap();
    let outcomes = load_and_pin(&dir).unwrap().pins;
    assert_eq!(outcome(&outcomes, SOCKOPS_PROGRAM), Outcome::Replaced);
    assert_eq!(outcome(&outcomes, "probe_sockops_link"), Outcome::Replaced);
    assert_ne!(attached(), first);
    fs::remove_file(dir.join("probe_sockops_link")).unwrap();
    let outcomes = load_and_pin(&dir).unwrap().pins;
    assert_eq!(outcome(&outcomes, "probe_sockops_link"), Outcome::Created);
    attached();
}

/// A map of another layout stands for a kernel that does not take the programs.
fn without_what_probes_need_the_gate_is_there() {
    let dir = dir("without");
    load_and_pin(&dir).unwrap();
    fs::remove_file(dir.join("responders")).unwrap();
    let other = HashMap::<MapData, u32, u32>::create(1, 0).unwrap();
    other.pin(dir.join("responders")).unwrap();
    let loaded = load_and_pin(&dir).unwrap();
    assert!(loaded.without_probes.is_some());
    assert_eq!(outcome(&loaded.pins, GATE_PROGRAM), Outcome::Unchanged);
    Maps::open(&dir).unwrap();
    assert!(Kubelets::open(&dir).is_err());
    let left = fs::read_dir(&dir).unwrap();
    assert_eq!(left.count(), loaded.pins.len());
    assert!(load_and_pin(&dir).unwrap().without_probes.is_none());
}

/// As shims do that run before the installer has, after a boot.
fn whoever_finds_the_gate_finds_the_rest() {
    let dir = dir("order");
    fs::create_dir_all(&dir).unwrap();
    let pinned = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    let appears = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    pinned.add_watch(&dir, appears).unwrap();
    load_and_pin(&dir).unwrap();
    // All of them are there by now.
    let events = pinned.read_events().unwrap().into_iter();
    let mut names: Vec<_> = events.filter_map(|event| event.name).collect();
    assert_eq!(names.pop().unwrap(), GATE_PROGRAM);
    assert!(
        names.iter().any(|name| name == SOCKOPS_PROGRAM),
        "{names:?}"
    );
    assert!(names.iter().any(|name| name == TAP_PROGRAM), "{names:?}");
    unpin(&dir).unwrap();
}

fn loaders_at_the_same_time_agree() {
    let dir = dir("together");
    let outcomes: Vec<_> = thread::scope(|scope| {
        let loaders: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| load_and_pin(&dir).unwrap().pins))
            .collect();
        loaders
            .into_iter()
            .map(|loader| loader.join().unwrap())
            .collect()
    });
    let created = outcomes
        .iter()
        .filter(|outcomes| outcome(outcomes, GATE_PROGRAM) == Outcome::Created);
    assert_eq!(created.count(), 1);
}

/// Needs Linux 6.2, as the tests' machines have.
fn each_build_loads_and_the_faster_one_is_taken() {
    let dir = dir("builds");
    for build in [Build::Portable, Build::KernelContext] {
        load_and_pin_build(&dir, Some(build)).unwrap();
        let outcomes = load_and_pin_build(&dir, Some(build)).unwrap().pins;
        assert_eq!(outcome(&outcomes, GATE_PROGRAM), Outcome::Unchanged);
    }
    let outcomes = load_and_pin(&dir).unwrap().pins;
    assert_eq!(outcome(&outcomes, GATE_PROGRAM), Outcome::Unchanged);
    let outcomes = load_and_pin_build(&dir, Some(Build::Portable))
        .unwrap()
        .pins;
    assert_eq!(outcome(&outcomes, GATE_PROGRAM), Outcome::Replaced);
}

fn removing_leaves_nothing() {
    let dir = dir("remove");
    load_and_pin(&dir).unwrap();
    assert_eq!(unpin(&dir).unwrap().len(), 15);
    assert!(!dir.parent().unwrap().exists());
    assert!(unpin(&dir).unwrap().is_empty());
}

fn attaches_both_ways_and_detaches() {
    let dir = dir("attach");
    load_and_pin(&dir).unwrap();
    // A thread's network namespace lives as long as its descriptor.
    let netns = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        fs::File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap();
    let netns = netns.as_fd();
    assert_ne!(netns::cookie(netns).unwrap(), 0);
    let attached = || is_attached(netns, "lo", GATE_PROGRAM).unwrap();
    let link = attach(&dir, GATE_PROGRAM, netns, "lo", None).unwrap();
    assert_eq!(link.method(), Method::Tcx);
    assert!(attached());
    drop(link);
    assert!(!attached());
    for _ in 0..2 {
        // The second time fails to add what the first has left.
        let link = attach(&dir, GATE_PROGRAM, netns, "lo", Some(Method::Clsact)).unwrap();
        assert_eq!(link.method(), Method::Clsact);
        link.detach().unwrap();
        let added = netns::enter(netns, || podmotion_bpf::netlink::add_clsact(1)).unwrap();
        assert!(added.unwrap(), "the qdisc was left");
        // Somebody else's qdisc stays.
        let link = attach(&dir, GATE_PROGRAM, netns, "lo", Some(Method::Clsact)).unwrap();
        link.detach().unwrap();
        netns::enter(netns, || podmotion_bpf::netlink::delete_clsact(1))
            .unwrap()
            .unwrap();
    }
    assert!(attach(&dir, GATE_PROGRAM, netns, "eth7", None).is_err());
}
