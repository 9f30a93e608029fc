//! Generates messages and services from `proto/*.proto`, without a protoc.

use std::path::PathBuf;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> std::io::Result<()> {
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    println!("cargo::rerun-if-changed=proto");
    Codegen::new()
        .out_dir(&out)
        .inputs(["proto/shim.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, gen_mod: true, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // Inner attributes are not allowed in an included file.
    for name in ["shim.rs", "shim_ttrpc.rs"] {
        let path = out.join(name);
        let code = std::fs::read_to_string(&path)?;
        let kept: Vec<_> = code.lines().filter(|line| !is_inner(line)).collect();
        std::fs::write(&path, kept.join("\n"))?;
    }
    Ok(())
}

fn is_inner(line: &str) -> bool {
    line.starts_with("#![") || line.starts_with("//!")
}
