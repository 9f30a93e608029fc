//! The table of everything that setup brings, in the order of making.

use super::Item;
use super::apps::Apps;
use super::arm64::Machine;
use super::bundle::{Bundle, OnDemand};
use super::criu::{CRIU, Criu};
use super::cross::Cross;
use super::deny::Deny;
use super::go::Go;
use super::helm::Helm;
use super::host::Packages;
use super::images::{Base, Pause, Software};
use super::kubernetes::Kubernetes;
use super::monitoring::Monitoring;
use super::schemas::Schemas;
use super::small::Busybox;
use super::vm::Vm;
use crate::arch::Arch;

/// Name of the item with the emulators of single programs.
pub const QEMU_USER: &str = "qemu-user";
/// Where they are in the cache.
pub const QEMU_USER_PLACE: &str = "tools/qemu-user";

/// Every item; what one needs comes before it.
pub fn all() -> Vec<Box<dyn Item>> {
    let mut items: Vec<Box<dyn Item>> = vec![Box::new(Packages), Box::new(Cross)];
    items.extend(
        bundles()
            .into_iter()
            .map(|bundle| Box::new(bundle) as Box<dyn Item>),
    );
    items.push(Box::new(OnDemand(QEMU_USER_BUNDLE)));
    items.extend(Arch::ALL.map(|arch| Box::new(Criu(arch)) as Box<dyn Item>));
    items.push(Box::new(Pause));
    items.push(Box::new(Go));
    items.push(Box::new(Base));
    items.push(Box::new(Busybox));
    items.push(Box::new(Software));
    items.push(Box::new(Apps));
    items.push(Box::new(Kubernetes));
    items.push(Box::new(Helm));
    items.push(Box::new(Schemas));
    items.push(Box::new(Monitoring));
    items.push(Box::new(Vm));
    items.push(Box::new(OnDemand(QEMU_ARM)));
    items.push(Box::new(OnDemand(PROMETHEUS)));
    items.push(Box::new(Machine));
    items.push(Box::new(Deny));
    items
}

const CONTAINERD_PROGRAMS: &[(&str, &str)] = &[
    ("usr/bin/containerd", "bin/containerd"),
    ("usr/bin/ctr", "bin/ctr"),
    (
        "usr/bin/containerd-shim-runc-v2",
        "bin/containerd-shim-runc-v2",
    ),
];

const RUNC_PROGRAMS: &[(&str, &str)] = &[("usr/sbin/runc", "bin/runc")];

/// The emulators are for those who ask for them: everything else is tested on this machine.
const QEMU_USER_BUNDLE: Bundle = Bundle {
    name: QEMU_USER,
    why: "runs single programs of the other architecture",
    place: QEMU_USER_PLACE,
    suite: "trixie",
    packages: &["qemu-user"],
    programs: &[
        ("usr/bin/qemu-aarch64", "bin/qemu-aarch64"),
        ("usr/bin/qemu-x86_64", "bin/qemu-x86_64"),
    ],
    data: &[],
    links: &[],
    trial: ("bin/qemu-aarch64", &["--version"], "qemu-aarch64 version"),
};

const QEMU_ARM: Bundle = Bundle {
    name: "qemu-arm",
    why: "runs an arm64 machine by emulation",
    place: "tools/qemu-arm",
    suite: "trixie",
    packages: &["qemu-system-arm"],
    programs: &[("usr/bin/qemu-system-aarch64", "bin/qemu-system-aarch64")],
    data: &[],
    links: &[],
    trial: (
        "bin/qemu-system-aarch64",
        &["--version"],
        "QEMU emulator version",
    ),
};

/// The server of the package that `promtool` is from.
const PROMETHEUS: Bundle = Bundle {
    name: "prometheus",
    why: "records the dashboard's panels; only `cargo xtask panels` needs it",
    place: "tools/prometheus",
    suite: "trixie",
    packages: &["prometheus"],
    programs: &[("usr/bin/prometheus", "bin/prometheus")],
    data: &[],
    links: &[],
    trial: ("bin/prometheus", &["--version"], "prometheus, version"),
};

fn bundles() -> [Bundle; 11] {
    [
        CRIU,
        containerd(
            "containerd-1.6",
            "the oldest containerd that is supported",
            "bookworm",
            " 1.6.",
        ),
        containerd(
            "containerd-1.7",
            "the containerd of most clusters",
            "trixie",
            " 1.7.",
        ),
        newest_containerd(),
        runc(
            "runc-1.1",
            "the oldest runc that is supported",
            "bookworm",
            "runc version 1.1.",
        ),
        newest_runc(),
        Bundle {
            name: "cni",
            why: "network plugins of the tests' pods",
            place: "cni",
            suite: "forky",
            packages: &["containernetworking-plugins"],
            programs: &[("usr/lib/cni/", "")],
            data: &[],
            links: &[],
            trial: ("bridge", &[], "\"supportedVersions\""),
        },
        Bundle {
            name: "etcd",
            why: "keeps what the tests' clusters know",
            place: "etcd",
            suite: "trixie",
            packages: &["etcd-server"],
            programs: &[("usr/bin/etcd", "bin/etcd")],
            data: &[],
            links: &[],
            trial: ("bin/etcd", &["--version"], "etcd Version: 3."),
        },
        Bundle {
            name: "wrk",
            why: "HTTP load for the tests and figures",
            place: "tools/wrk",
            suite: "trixie",
            packages: &["wrk"],
            programs: &[("usr/bin/wrk", "bin/wrk")],
            data: &[],
            links: &[("tools/bin/wrk", "tools/wrk/bin/wrk")],
            // wrk prints its usage and fails when asked for its version.
            trial: ("bin/wrk", &["--version"], "wrk"),
        },
        Bundle {
            name: "promtool",
            why: "checks the chart's alerts and tries them out",
            place: "tools/promtool",
            suite: "trixie",
            packages: &["prometheus"],
            programs: &[("usr/bin/promtool", "bin/promtool")],
            data: &[],
            links: &[],
            trial: ("bin/promtool", &["--version"], "promtool, version"),
        },
        Bundle {
            name: "qemu",
            why: "runs the virtual machine by emulation; version 7 panics there",
            place: "tools/qemu",
            suite: "trixie",
            packages: &["qemu-system-x86", "qemu-utils"],
            programs: &[
                ("usr/bin/qemu-system-x86_64", "bin/qemu-system-x86_64"),
                ("usr/bin/qemu-img", "bin/qemu-img"),
            ],
            // It looks for these in `/usr` unless told otherwise with `-L`.
            data: &[
                ("usr/share/qemu", "share/qemu"),
                ("usr/share/seabios", "share/qemu"),
            ],
            links: &[
                (
                    "tools/bin/qemu-system-x86_64",
                    "tools/qemu/bin/qemu-system-x86_64",
                ),
                ("tools/bin/qemu-img", "tools/qemu/bin/qemu-img"),
            ],
            trial: (
                "bin/qemu-system-x86_64",
                &["--version"],
                "QEMU emulator version",
            ),
        },
    ]
}

/// The containerd of the newest suite.
pub fn newest_containerd() -> Bundle {
    containerd("containerd-2", "the newest containerd", "forky", " 2.")
}

/// The runc of the newest suite.
pub fn newest_runc() -> Bundle {
    runc("runc-1.3", "the newest runc", "forky", "runc version 1.3.")
}

const fn containerd(
    name: &'static str,
    why: &'static str,
    suite: &'static str,
    version: &'static str,
) -> Bundle {
    Bundle {
        name,
        why,
        place: name,
        suite,
        packages: &["containerd"],
        programs: CONTAINERD_PROGRAMS,
        data: &[],
        links: &[],
        trial: ("bin/containerd", &["--version"], version),
    }
}

const fn runc(
    name: &'static str,
    why: &'static str,
    suite: &'static str,
    version: &'static str,
) -> Bundle {
    Bundle {
        name,
        why,
        place: name,
        suite,
        packages: &["runc"],
        programs: RUNC_PROGRAMS,
        data: &[],
        links: &[],
        trial: ("bin/runc", &["--version"], version),
    }
}
