//! What the head of a program says: for which machine it is, and what loads it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use object::elf::{EM_AARCH64, EM_X86_64, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};

use crate::arch::Arch;
use crate::setup::files;

/// The loader that `program` asks for; none for static programs and for libraries.
///
/// # Errors
/// When `program` cannot be read or is no ELF file.
pub fn interpreter(program: &Path) -> Result<Option<String>> {
    let content = files::read(program)?;
    loader(&content).with_context(|| format!("{} is no ELF file", program.display()))
}

/// Fails unless `program` is an ELF file for `arch`.
///
/// # Errors
/// When it cannot be read, is no ELF file or is for another machine.
pub fn check_machine(program: &Path, arch: Arch) -> Result<()> {
    let content = files::read(program)?;
    let machine =
        machine(&content).with_context(|| format!("{} is no ELF file", program.display()))?;
    let wanted = machine_of(arch);
    ensure!(
        machine == wanted,
        "{} is for another machine than {}: {machine}, not {wanted}",
        program.display(),
        arch.name(),
    );
    Ok(())
}

fn machine_of(arch: Arch) -> u16 {
    match arch {
        Arch::Amd64 => EM_X86_64,
        Arch::Arm64 => EM_AARCH64,
    }
}

fn machine(content: &[u8]) -> Result<u16> {
    let header = FileHeader64::<Endianness>::parse(content)?;
    Ok(header.e_machine(header.endian()?))
}

fn loader(content: &[u8]) -> Result<Option<String>> {
    let header = FileHeader64::<Endianness>::parse(content)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, content)? {
        if segment.p_type(endian) != object::elf::PT_INTERP {
            continue;
        }
        let (at, size) = segment.file_range(endian);
        let Ok(path) = content.read_bytes_at(at, size) else {
            bail!("the loader's path is outside of it");
        };
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        return Ok(Some(String::from_utf8_lossy(path).into_owned()));
    }
    Ok(None)
}

#[cfg(test)]
pub mod tests {
    use object::elf::{ET_EXEC, PT_INTERP};

    use super::*;

    const HEADER: usize = 64;
    const SEGMENT: usize = 56;

    /// The smallest program for `arch` that asks for `loader`.
    pub fn sample(arch: Arch, loader: Option<&str>) -> Vec<u8> {
        let loader = loader.map(|path| format!("{path}\0"));
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        let mut half = |value: u16| elf.extend(value.to_le_bytes());
        half(ET_EXEC);
        half(machine_of(arch));
        elf.extend(1u32.to_le_bytes());
        let segments = if loader.is_some() { HEADER as u64 } else { 0 };
        for value in [0, segments, 0] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend(0u32.to_le_bytes());
        for value in [HEADER, SEGMENT, usize::from(loader.is_some()), 0, 0, 0] {
            elf.extend((value as u16).to_le_bytes());
        }
        if let Some(loader) = loader {
            elf.extend(PT_INTERP.to_le_bytes());
            elf.extend(0u32.to_le_bytes());
            let at = (HEADER + SEGMENT) as u64;
            let size = loader.len() as u64;
            for value in [at, 0, 0, size, size, 1] {
                elf.extend(value.to_le_bytes());
            }
            elf.extend(loader.as_bytes());
        }
        elf
    }

    #[test]
    fn machine_and_loader_are_read() {
        let elf = sample(Arch::Arm64, Some("/lib/ld.so"));
        assert_eq!(machine(&elf).expect("ELF"), EM_AARCH64);
        assert_eq!(loader(&elf).expect("ELF").as_deref(), Some("/lib/ld.so"));
        assert_eq!(loader(&sample(Arch::Amd64, None)).expect("ELF"), None);
    }

    #[test]
    fn this_program_is_for_this_machine_and_for_no_other() {
        let this = std::env::current_exe().expect("own path");
        check_machine(&this, Arch::host().expect("known")).expect("for this machine");
        let error =
            check_machine(&this, Arch::foreign().expect("known")).expect_err("for another machine");
        assert!(error.to_string().contains("another machine"), "{error}");
        assert!(
            interpreter(&this)
                .expect("ELF")
                .is_some_and(|it| it.contains("ld-linux"))
        );
    }

    #[test]
    fn what_is_no_program_is_said_to_be_none() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let file = dir.path().join("script");
        std::fs::write(&file, "#!/bin/sh\necho a script that is long enough\n").expect("write");
        let error = interpreter(&file).expect_err("no ELF file");
        assert!(error.to_string().contains("no ELF file"), "{error}");
    }
}
