//! The names of the checks.

use clap::ValueEnum;

/// One check. Their order is that of the report: what others build on comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The node's configuration is valid
    Configuration,
    /// The kernel is new enough
    KernelVersion,
    /// Memory can be filled in when it is asked for: light sleep and lazy restores
    Userfaultfd,
    /// A descriptor can be taken from a process
    PidfdGetfd,
    /// Processes with seccomp filters can be put to sleep
    SuspendSeccomp,
    /// Pages can be found quickly
    PagemapScan,
    /// Containers can be frozen
    Freezer,
    /// The kernel describes its types, which BPF programs need
    Btf,
    /// Packets can be held: tap devices
    Tun,
    /// The kernel takes the gate's BPF programs
    BpfLoad,
    /// The gate's BPF programs and maps are pinned
    BpfPins,
    /// A pinned program can be attached to an interface
    Gate,
    /// There is a directory for checkpoints, on a disk
    Checkpoints,
    /// There is a runc
    Runc,
    /// CRIU is there and new enough
    Criu,
    /// CRIU finds all that it needs in the kernel
    CriuKernel,
    /// A process is checkpointed, ended and restored, and goes on where it was
    SelfTest,
    /// containerd has the runtime
    Containerd,
}

impl Name {
    /// Its name, as on the command line.
    pub fn text(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}
