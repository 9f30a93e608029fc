//! Generates the services' code into `OUT_DIR`.

use std::error::Error;
use std::path::PathBuf;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let protos = ["proto/podmotion/shim/v1/shim.proto"];
    for proto in protos {
        println!("cargo::rerun-if-changed={proto}");
    }
    Codegen::new()
        .out_dir(&out_dir)
        .inputs(protos)
        .include("proto")
        .rust_protobuf()
        .customize(Customize {
            async_all: true,
            ..Customize::default()
        })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // A file of modules, since an included file cannot have the attributes of the generated ones.
    std::fs::write(
        out_dir.join("generated.rs"),
        "pub mod shim;\npub mod shim_ttrpc;\n",
    )?;
    Ok(())
}
