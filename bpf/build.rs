//! Compiles the BPF programs when the loader, which embeds them, is built.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Objects, their sources and what is defined for them.
const PROGRAMS: [(&str, &str, Option<&str>); 5] = [
    ("gate_ingress", "gate_ingress", None),
    (
        "gate_ingress_kernel_context",
        "gate_ingress",
        Some("-DGATE_KERNEL_CONTEXT"),
    ),
    ("tap_ingress", "tap_ingress", None),
    ("probe_sockops", "probe_sockops", None),
    ("probe_steer", "probe_steer", None),
];

fn main() {
    println!("cargo::rerun-if-changed=programs");
    println!("cargo::rerun-if-env-changed=CLANG");
    if env::var_os("CARGO_FEATURE_LOADER").is_none() {
        return;
    }
    if let Err(message) = compile() {
        println!("cargo::error={message}");
    }
}

fn compile() -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    for (name, source, define) in PROGRAMS {
        let source = Path::new("programs").join(format!("{source}.bpf.c"));
        let object = out.join(format!("{name}.o"));
        let mut command = Command::new(&clang);
        command
            // The third version of the instructions, which Linux has since 5.1, has those for 32 bits.
            .args([
                "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror",
            ])
            // The object's debug sections are not to depend on where it was built.
            .args(["-fdebug-compilation-dir", "."])
            .args(multiarch_include())
            .args(define)
            .arg("-c")
            .arg(&source)
            .arg("-o")
            .arg(&object);
        let output = command.output().map_err(|error| {
            format!(
                "cannot run {clang} to compile {}: {error}; `cargo xtask setup` brings clang and libbpf's headers",
                source.display()
            )
        })?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let first = stderr
                .lines()
                .find(|line| line.contains("error"))
                .unwrap_or("no message");
            eprintln!("{stderr}");
            return Err(format!(
                "{clang} cannot compile {}: {first}; `cargo xtask setup` brings clang and libbpf's headers",
                source.display()
            ));
        }
    }
    Ok(())
}

/// Debian and Ubuntu keep `asm/types.h` in a folder per architecture, where clang does not look
/// when it compiles for another target than its host. Any architecture's will do.
fn multiarch_include() -> Option<String> {
    let found = std::fs::read_dir("/usr/include")
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.join("asm/types.h").exists())
        .min()?;
    Some(format!("-I{}", found.display()))
}
