//! Compiles the `.proto` files without `protoc`.

use std::{error::Error, path::Path};

const FILES: &[&str] = &[
    "volant/agent/v1/agent.proto",
    "volant/agent/v1/session.proto",
    "volant/ipam/v1/ipam.proto",
    "volant/registry/v1/registry.proto",
    "volant/vm/v1/vm.proto",
];

/// Messages that carry a secret or a token themselves: `src/hidden.rs` writes their Debug.
const HIDDEN: &[&str] = &[
    ".volant.agent.v1.HelloRequest",
    ".volant.agent.v1.HelloResponse",
    ".volant.agent.v1.Secret",
    ".volant.agent.v1.SessionRequest",
    ".volant.registry.v1.SecretValue",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in FILES {
        println!("cargo::rerun-if-changed={}", root.join(file).display());
    }
    let files: Vec<_> = FILES.iter().map(|file| root.join(file)).collect();
    let descriptors = protox::compile(files, [root])?;
    tonic_prost_build::configure()
        .skip_debug(HIDDEN)
        .compile_fds(descriptors)?;
    Ok(())
}
