//! Ctrl-C while an image is written.

use std::{
    fs::File,
    io::{Seek, Write},
    process::Stdio,
};

use crate::work::{Tar, Work, eventually, header, names, program};

/// Of zeros, which take no room; writing them takes seconds, optimised or not.
const SIZE: u64 = if cfg!(debug_assertions) {
    32 << 20
} else {
    3 << 30
};

#[test]
fn an_interrupted_build_leaves_nothing() {
    let work = Work::new(
        "[plugin]\nname = \"app\"\nstrategy = \"oci_rootfs\"\n[oci_source]\nimage = \"tar:big.tar\"\n\
         [workload]\nentrypoint = [\"/bin/busybox\"]\n",
    );
    let start = Tar::new().busybox().end();
    let mut file = File::create(work.path("big.tar")).unwrap();
    file.write_all(&start[..start.len() - 1024]).unwrap();
    let mut header = header(b'0', 0o644, SIZE);
    header.set_path("zeros").unwrap();
    header.set_cksum();
    file.write_all(header.as_bytes()).unwrap();
    let at = file.stream_position().unwrap();
    file.set_len(at + SIZE + 1024).unwrap();

    let build = work
        .command(&program())
        .args(["build", "-o", "out"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the image is written", || {
        work.path("out").exists() && !names(&work.path("out")).is_empty()
    });
    work.assert_interrupted(build);
}
