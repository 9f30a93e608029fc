//! A Go compiler: the machine's own when it is new enough, Debian's otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{Cache, Item, Work, files};
use crate::process;

/// The test server speaks HTTP/2 in clear text with the standard library alone, which is from this version on.
const OLDEST: (u32, u32) = (1, 24);

/// Where Go's own installation instructions put it.
const USUAL_PLACE: &str = "/usr/local/go/bin/go";

const PLACE: &str = "tools/go";

/// The Go compiler.
pub struct Go;

impl Item for Go {
    fn name(&self) -> &str {
        "go"
    }

    fn why(&self) -> &str {
        "compiles the Go test server"
    }

    fn needs(&self) -> &[&str] {
        &["packages"]
    }

    fn place(&self) -> Option<&str> {
        Some(PLACE)
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok("golang-go of forky".to_owned())
    }

    fn present(&self, cache: &Cache) -> Result<bool> {
        Ok(on_machine().is_some()
            || cache.is_current(self.name(), &self.recipe(cache)?, self.place())?)
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        work.ui.step("fetching from Debian forky");
        let debs = work.apt.suite("forky")?.fetch(&["golang-go"])?;
        work.ui.step("unpacking");
        for deb in &debs {
            deb.unpack(partial)?;
        }
        // Only these hold the compiler; whatever else they depend on is for building with C.
        files::remove(&partial.join("usr/share/doc"))?;
        debs.iter()
            .find(|deb| deb.package == "golang-go")
            .map(|deb| deb.version.clone())
            .context("apt brought no golang-go")
    }

    fn check(&self, place: &Path) -> Result<()> {
        let go = place.join("usr/lib/go/bin/go");
        ensure!(
            version(&go).is_some_and(|version| version >= OLDEST),
            "{} is older than {OLDEST:?}",
            go.display()
        );
        Ok(())
    }
}

/// Folder of what programs have in common that are compiled in one run, the standard library for one.
const SHARED: &str = "go";

/// The `go` command for building static programs, with its caches in ours.
pub fn command(cache: &Cache) -> Command {
    let program = on_machine().unwrap_or_else(|| cache.path(PLACE).join("usr/lib/go/bin/go"));
    let mut command = process::command(program);
    command
        .env("CGO_ENABLED", "0")
        // The same for all, or they would have nothing in common. What a debugger needs is left out at the end anyway.
        .env("GOFLAGS", "-trimpath -modcacherw -gcflags=all=-dwarf=false")
        .env("GOTOOLCHAIN", "local")
        // The compiler lives for seconds: it need not clean up after itself that often.
        .env("GOGC", "400")
        .env("GOCACHE", cache.path(SHARED).join("build"))
        .env("GOMODCACHE", cache.path(SHARED).join("modules"));
    command
}

/// Removes what [`command`] has left behind: gigabytes that nothing else has a use for.
///
/// # Errors
/// When it cannot be removed.
pub fn clean(cache: &Cache) -> Result<()> {
    files::remove(&cache.path(SHARED))
}

/// Compiles the programs `packages` of the module in the folder `module` to `partial/bin`, with `flags` for the linker.
///
/// # Errors
/// When they do not compile.
pub fn build(
    work: &Work<'_>,
    module: &Path,
    partial: &Path,
    flags: &str,
    packages: &[String],
) -> Result<()> {
    let bin = partial.join("bin");
    files::make_dir(&bin)?;
    process::output(
        command(work.cache)
            .current_dir(module)
            .args(["build", "-mod=readonly", "-ldflags", flags, "-o"])
            .arg(&bin)
            .args(packages),
    )
    .map(drop)
}

/// What the `go.mod` and `go.sum` of a module pin, as one digest.
///
/// # Errors
/// When one of them cannot be read.
pub fn pinned(module: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in ["go.mod", "go.sum"] {
        hash.update(files::read(&module.join(name))?);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn on_machine() -> Option<PathBuf> {
    process::find("go")
        .into_iter()
        .chain([PathBuf::from(USUAL_PLACE)])
        .find(|go| version(go).is_some_and(|version| version >= OLDEST))
}

fn version(go: &Path) -> Option<(u32, u32)> {
    let mut command = process::command(go);
    command
        .args(["env", "GOVERSION"])
        .env("GOTOOLCHAIN", "local");
    parse(process::output(&mut command).ok()?.trim())
}

/// Reads `go1.26.8`, also with a suffix as in `go1.27rc1`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let (major, rest) = version.strip_prefix("go")?.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(parse("go1.26.8"), Some((1, 26)));
        assert_eq!(parse("go1.27rc1"), Some((1, 27)));
        assert!(parse("go1.9.1") < Some(OLDEST));
        assert_eq!(parse("devel"), None);
    }
}
