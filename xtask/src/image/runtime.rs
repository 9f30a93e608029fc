//! What the compilers link into every program: Rust's standard library, the C library, the C compiler's own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::process;

/// Files of the C compiler that static programs are linked with.
const ARCHIVES: [&str; 2] = ["libc.a", "libgcc_eh.a"];

/// A Debian package of this machine that programs are linked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Name of the package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Name of the source package.
    pub source: String,
    /// Its version.
    pub source_version: String,
    /// The package's copyright file.
    pub copyright: PathBuf,
}

/// Version of the compiler, which its standard library has too.
///
/// # Errors
/// When it does not answer.
pub fn rust_version() -> Result<String> {
    let about = process::output(
        process::command("rustc")
            .arg("-vV")
            .current_dir(crate::project_root()),
    )?;
    about
        .lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .context("rustc does not say its version")
}

/// The packages with the C libraries that programs for `arch` are linked with on this machine.
///
/// # Errors
/// When the C compiler for `arch` is missing, or has its libraries from elsewhere than Debian's packages.
pub fn linked(arch: Arch) -> Result<Vec<Linked>> {
    let compiler = if arch == Arch::host()? {
        "gcc"
    } else {
        arch.cross_compiler()
    };
    ARCHIVES
        .iter()
        .map(|archive| {
            let path = process::output(
                process::command(compiler).arg(format!("-print-file-name={archive}")),
            )?;
            let path = fs::canonicalize(path.trim())
                .with_context(|| format!("{compiler} has no {archive}"))?;
            package_of(&path)
        })
        .collect()
}

fn package_of(path: &Path) -> Result<Linked> {
    let owner = process::output(process::command("dpkg").arg("-S").arg(path))?;
    // `NAME: PATH`, or `NAME:ARCHITECTURE: PATH`.
    let (name, _) = owner
        .split_once(": ")
        .with_context(|| format!("dpkg says of {}: {owner}", path.display()))?;
    let format = "${Package}\n${Version}\n${source:Package}\n${source:Version}\n";
    let fields = process::output(process::command("dpkg-query").args([
        "--show",
        "--showformat",
        format,
        name,
    ]))?;
    let mut fields = fields.lines().map(str::to_owned);
    let mut field = |what: &str| {
        fields
            .next()
            .filter(|value| !value.is_empty())
            .with_context(|| format!("the package {name} has no {what}"))
    };
    let package = field("name")?;
    Ok(Linked {
        version: field("version")?,
        source: field("source")?,
        source_version: field("version of its source")?,
        copyright: Path::new("/usr/share/doc").join(&package).join("copyright"),
        name: package,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_its_c_libraries_from_packages() {
        let linked = linked(Arch::host().expect("known")).expect("packages");
        assert_eq!(linked[0].source, "glibc");
        assert!(linked[1].source.starts_with("gcc"), "{linked:?}");
        for package in linked {
            assert!(package.copyright.exists(), "{package:?}");
        }
    }
}
