//! The test applications that are compiled, each by the compiler that people use for it.

use std::path::Path;

use anyhow::Result;

use super::images::{BASE_PLACE, files_below, sources};
use super::{Work, files, go, rootfs};
use crate::arch::Arch;
use crate::{dist, process};

/// In the workspace.
const TOKIO: (&str, &str) = ("podmotion-test-tokioserver", "tokioserver");

/// Compiles all of them into the folder `build`.
pub(super) fn compile(work: &Work<'_>, build: &Path) -> Result<()> {
    let sources = sources();
    work.ui.step("compiling the Go server");
    process::output(
        go::command(work.cache)
            .current_dir(sources.join("goserver"))
            .args(["build", "-ldflags", "-s -w", "-o"])
            .arg(build.join("goserver"))
            .arg("."),
    )?;
    work.ui.step("compiling the io_uring server");
    compile_static(&sources.join("iouring.c"), &build.join("iouring"))?;
    process::output(
        process::command("gcc")
            .args(["-O2", "-shared", "-fPIC", "-s", "-o"])
            .arg(build.join("notroot.so"))
            .arg(sources.join("notroot.c")),
    )?;
    work.ui.step("compiling the tokio server");
    let (package, program) = TOKIO;
    let host = Arch::host()?;
    process::output(&mut dist::static_build(&[package], host)?)?;
    files::copy(
        &dist::release_dir(host)?.join(program),
        &build.join(program),
    )?;
    work.ui.step("compiling the Java server");
    inside(work, build, "Server.java", &["javac", "-d"])?;
    work.ui.step("compiling the Erlang server");
    inside(work, build, "server.erl", &["erlc", "-o"])
}

/// Compiles a C program that needs no library.
pub(super) fn compile_static(source: &Path, program: &Path) -> Result<()> {
    process::output(
        process::command("gcc")
            .args(["-O2", "-static", "-s", "-o"])
            .arg(program)
            .arg(source),
    )
    .map(drop)
}

/// With the image's own compiler, in a folder of its root that is gone afterwards. `compiler` ends with its option for
/// the folder that it writes to.
fn inside(work: &Work<'_>, build: &Path, source: &str, compiler: &[&str]) -> Result<()> {
    let root = work.cache.path(BASE_PLACE).join("root");
    let folder = root.join("tmp/build");
    files::remove(&folder)?;
    files::copy(&sources().join(source), &folder.join(source))?;
    files::make_dir(&folder.join("out"))?;
    process::output(
        rootfs::inside(&root)
            .args(compiler)
            .args(["/tmp/build/out", &format!("/tmp/build/{source}")]),
    )?;
    for (name, path) in files_below(&folder.join("out"))? {
        files::copy(&path, &build.join(name))?;
    }
    files::remove(&folder)
}
