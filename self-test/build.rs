//! Generates the gRPC clients from `proto/`, without a `protoc` on the machine.

use std::error::Error;

const FILES: &[&str] = &[
    "containerd/containers.proto",
    "containerd/leases.proto",
    "containerd/metrics_v1.proto",
    "containerd/metrics_v2.proto",
    "containerd/namespaces.proto",
    "containerd/runtimeoptions.proto",
    "containerd/snapshots.proto",
    "containerd/tasks.proto",
    "containerd/version.proto",
    "cri/runtime.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("api.rs")
        .compile_fds(files)?;
    Ok(())
}
