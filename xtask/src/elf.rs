//! What `patchelf` tells of a program.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::process;

/// The loader that `program` asks for; none for static programs and for libraries.
///
/// # Errors
/// When `patchelf` is missing or `program` is no ELF file.
pub fn interpreter(program: &Path) -> Result<Option<String>> {
    let output = process::command("patchelf")
        .arg("--print-interpreter")
        .arg(program)
        .output()
        .context("cannot start patchelf, which `cargo xtask setup` brings")?;
    if output.status.success() {
        let name = String::from_utf8_lossy(&output.stdout);
        return Ok(Some(name.trim().to_owned()));
    }
    let error = String::from_utf8_lossy(&output.stderr);
    // Static programs and libraries have no such section.
    if error.contains(".interp") {
        return Ok(None);
    }
    bail!(
        "patchelf --print-interpreter {}: {error}",
        program.display()
    )
}
