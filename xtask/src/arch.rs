//! The architectures of the nodes that Podmotion is built for.

use anyhow::{Result, bail};
use clap::ValueEnum;

/// An architecture, by the name that OCI images and Debian have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Arch {
    /// x86_64.
    Amd64,
    /// aarch64.
    Arm64,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// This machine's.
    ///
    /// # Errors
    /// When Podmotion is not built for it.
    pub fn host() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("this machine is {other}; Podmotion is built on x86_64 and aarch64"),
        }
    }

    /// The other one than this machine's.
    ///
    /// # Errors
    /// When Podmotion is not built for this machine's.
    pub fn foreign() -> Result<Self> {
        Ok(match Self::host()? {
            Self::Amd64 => Self::Arm64,
            Self::Arm64 => Self::Amd64,
        })
    }

    /// Its name in OCI images and in Debian.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// What the compiler calls programs for it.
    pub fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's C compiler for it on another machine.
    pub fn cross_compiler(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }

    /// Debian's packages of that compiler and of the C library, for another machine: (package, purpose).
    pub fn cross_packages(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Amd64 => &[
                ("gcc-x86-64-linux-gnu", "compiles and links for amd64"),
                ("libc6-dev-amd64-cross", "static linking for amd64"),
            ],
            Self::Arm64 => &[
                ("gcc-aarch64-linux-gnu", "compiles and links for arm64"),
                ("libc6-dev-arm64-cross", "static linking for arm64"),
            ],
        }
    }

    /// The loader of its programs, below a library folder.
    pub fn loader(self) -> &'static str {
        match self {
            Self::Amd64 => "ld-linux-x86-64.so.2",
            Self::Arm64 => "ld-linux-aarch64.so.1",
        }
    }

    /// The program that runs its programs on another machine.
    pub fn emulator(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-x86_64",
            Self::Arm64 => "qemu-aarch64",
        }
    }
}
