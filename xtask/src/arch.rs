//! The architectures of the nodes that Podmotion is built for.

use std::path::Path;

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

    /// The kernel's name for it.
    pub fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
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

    /// The package that has the C library which programs for it are linked with.
    ///
    /// # Errors
    /// When Podmotion is not built for this machine's architecture.
    pub fn libc_package(self) -> Result<&'static str> {
        Ok(match (self == Self::host()?, self) {
            (true, _) => "libc6-dev",
            (false, Self::Amd64) => "libc6-dev-amd64-cross",
            (false, Self::Arm64) => "libc6-dev-arm64-cross",
        })
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

    /// The field that tells it in an ELF file.
    fn elf_machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }

    /// Fails unless `file` is an ELF file for it.
    ///
    /// # Errors
    /// When it cannot be read, is no ELF file or is for another machine.
    pub fn check_elf(self, file: &Path) -> Result<()> {
        let content = crate::setup::files::read(file)?;
        let machine = content
            .get(18..20)
            .filter(|_| content.starts_with(b"\x7fELF"))
            .and_then(|field| field.try_into().ok())
            .map(u16::from_le_bytes);
        match machine {
            None => bail!("{} is no ELF file", file.display()),
            Some(found) if found != self.elf_machine() => bail!(
                "{} is for another machine (ELF machine {found}, {} is {})",
                file.display(),
                self.name(),
                self.elf_machine()
            ),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_for_this_machine_and_for_no_other() {
        let this = std::env::current_exe().expect("own path");
        Arch::host()
            .expect("known")
            .check_elf(&this)
            .expect("for this machine");
        let error = Arch::foreign()
            .expect("known")
            .check_elf(&this)
            .expect_err("for another machine");
        assert!(error.to_string().contains("another machine"), "{error}");
    }

    #[test]
    fn what_is_no_program_is_said_to_be_none() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let file = dir.path().join("script");
        std::fs::write(&file, "#!/bin/sh\necho a script that is long enough\n").expect("write");
        let error = Arch::Amd64.check_elf(&file).expect_err("no ELF file");
        assert!(error.to_string().contains("no ELF file"), "{error}");
    }
}
