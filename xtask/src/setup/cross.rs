//! What compiles for the other architecture: the compilers' half of it, and the C library.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Cache, Item, Work, host};
use crate::arch::Arch;
use crate::process;

/// Name of the item.
pub const CROSS: &str = "cross";

/// C compiler, C library and Rust's standard library for the other architecture than this machine's.
pub struct Cross;

impl Item for Cross {
    fn name(&self) -> &str {
        CROSS
    }

    fn why(&self) -> &str {
        "compiles for the other architecture, amd64 or arm64"
    }

    fn needs(&self) -> &[&str] {
        &["packages"]
    }

    fn place(&self) -> Option<&str> {
        None
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        let arch = Arch::foreign()?;
        Ok(format!("{} {:?}", arch.triple(), arch.cross_packages()))
    }

    fn present(&self, _cache: &Cache) -> Result<bool> {
        let arch = Arch::foreign()?;
        Ok(host::missing(arch.cross_packages())?.is_empty() && has_std(arch)?)
    }

    fn make(&self, work: &Work<'_>, _partial: &Path) -> Result<String> {
        let arch = Arch::foreign()?;
        let version = host::install(work, arch.cross_packages())?;
        if !has_std(arch)? {
            work.ui
                .step(&format!("Rust's standard library for {}", arch.triple()));
            process::output(
                process::command("rustup")
                    .args(["target", "add", arch.triple()])
                    // The toolchain that the checkout asks for is meant.
                    .current_dir(crate::project_root()),
            )
            .with_context(|| {
                format!(
                    "the compiler has no standard library for {} and rustup cannot bring it",
                    arch.triple()
                )
            })?;
        }
        Ok(version)
    }

    fn check(&self, _place: &Path) -> Result<()> {
        Ok(())
    }
}

/// Whether the compiler has a standard library for `arch`.
fn has_std(arch: Arch) -> Result<bool> {
    let folder = process::output(
        process::command("rustc")
            .args(["--print", "target-libdir", "--target", arch.triple()])
            .current_dir(crate::project_root()),
    )?;
    Ok(Path::new(folder.trim()).is_dir())
}
