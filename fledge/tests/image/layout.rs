//! Images in a layout, made by umoci.

use std::fs;

use predicates::{prelude::*, str::contains};
use sha2::{Digest as _, Sha256};
use volant_spec::manifest::RootfsFormat;

use crate::{
    thing::{assert_same, of_folder},
    work::{BUSYBOX, Tar, Work, run},
};

/// `cap_net_bind_service=ep`, as the kernel has it.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

pub const RECIPE: &str =
    "[plugin]\nname = \"app\"\nstrategy = \"oci_rootfs\"\n[oci_source]\nimage = \"oci:layout:1\"\n";

const CONFIG: &[&str] = &[
    "--config.entrypoint",
    "/bin/busybox",
    "--config.cmd",
    "httpd",
    "--config.env",
    "A=b=c",
    "--config.user",
    "33:33",
    "--config.workingdir",
    "/srv",
    "--config.stopsignal",
    "SIGQUIT",
    "--config.exposedports",
    "8080/tcp",
    "--config.volume",
    "/data",
];

fn layers() -> [Vec<u8>; 3] {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(180));
    [
        Tar::new()
            .add(b'5', "./", 0o755, (0, 0), b"")
            .busybox()
            .dir("etc/")
            .file("etc/app.conf", b"of the image")
            .file("etc/gone", b"gone")
            .dir("srv/")
            .file("srv/below", b"below")
            .add(b'0', "bin/su", 0o4755, (0, 7), b"su")
            .xattr("security.capability", CAPABILITY)
            .add(b'0', "bin/ping", 0o755, (0, 0), b"ping")
            .add(b'5', "tmp/", 0o1777, (0, 0), b"")
            .add(b'0', "odd", 0o640, (1234, 4321), &vec![7; 300_000])
            .link(b'2', "sh", "bin/busybox")
            .link(b'1', "odd-too", "odd")
            .dir(&"d".repeat(120))
            .file(&long, b"long")
            .end(),
        Tar::new()
            .dir("etc/")
            .file("etc/.wh.gone", b"")
            .dir("srv/")
            .file("srv/.wh..wh..opq", b"")
            .file("srv/above", b"above")
            .dir("srv/")
            .dir("etc/")
            .end(),
        Tar::new()
            .link(b'1', "odd-three", "odd-too")
            .dir("bin/")
            .add(b'6', "pipe", 0o600, (5, 6), b"")
            .add(b'5', "./", 0o711, (0, 0), b"")
            .end(),
    ]
}

fn work(more: &str) -> Work {
    let work = Work::new(&format!("{RECIPE}{more}"));
    work.image(&layers(), CONFIG);
    work
}

#[test]
fn a_rootfs_is_what_umoci_unpacks() {
    let work = work("");
    let manifest = work.build();
    let bytes = fs::read(work.path("out/app.squashfs")).unwrap();
    let rootfs = manifest.rootfs.unwrap();
    assert_eq!(rootfs.format, RootfsFormat::Squashfs);
    assert_eq!(rootfs.checksum.hex(), hex::encode(Sha256::digest(&bytes)));
    assert_eq!(rootfs.size, Some(bytes.len() as u64));
    work.umoci(&["raw", "unpack", "--image", "layout:1", "expected"]);
    let found = of_folder(&work.unpacked());
    assert_same(&found, &of_folder(&work.path("expected")));
    assert!(found.contains_key(&b"srv/above"[..]) && !found.contains_key(&b"srv/below"[..]));
    assert_eq!(found[&b"odd"[..]].links, 3);
}

#[test]
fn the_images_settings_are_in_the_manifest_beneath_the_recipes() {
    let work = work("");
    let manifest = work.build();
    let (workload, network) = (manifest.workload, manifest.network.unwrap());
    assert_eq!(workload.entrypoint, ["/bin/busybox", "httpd"]);
    assert_eq!(workload.env["A"], "b=c");
    assert_eq!(workload.user.as_deref(), Some("33:33"));
    assert_eq!(workload.workdir.as_deref(), Some("/srv"));
    assert_eq!(workload.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(workload.volumes, ["/data"]);
    assert_eq!(network.ports[0].port.get(), 8080);

    let more = "[workload]\nargs = [\"sleep\", \"9\"]\nuser = \"0\"\nenv = { A = \"d\", B = \"e\" }\n\
                stop_signal = \"SIGINT\"\n[network]\nports = [{ port = 90, protocol = \"udp\" }]\n";
    work.write("fledge.toml", &format!("{RECIPE}{more}"));
    let manifest = work.build();
    let (workload, network) = (manifest.workload, manifest.network.unwrap());
    assert_eq!(workload.entrypoint, ["/bin/busybox", "sleep", "9"]);
    assert_eq!((&*workload.env["A"], &*workload.env["B"]), ("d", "e"));
    assert_eq!(workload.user.as_deref(), Some("0"));
    assert_eq!(workload.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(workload.workdir.as_deref(), Some("/srv"));
    assert!(network.ports.iter().any(|port| port.port.get() == 90));
}

#[test]
fn files_and_a_base_go_over_an_image() {
    let mapped = "[[file_mappings]]\nsource = \"mine\"\ndest = \"/etc/app.conf\"\n[base]\nbusybox = true\nfiles = true\n";
    let work = work(mapped);
    work.write("mine", "of the recipe");
    work.build();
    let root = work.unpacked();
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    assert_eq!(read("etc/app.conf"), "of the recipe");
    assert!(read("etc/passwd").starts_with("root:x:0:0:"));
    assert_eq!(fs::read(root.join("odd")).unwrap().len(), 300_000);
    assert!(fs::read(root.join("bin/busybox")).unwrap() == fs::read(BUSYBOX).unwrap());
    assert!(root.join("bin/ls").symlink_metadata().is_ok());
}

#[test]
fn another_folder_zone_and_umask_give_the_same_bytes() {
    let first = work("");
    let results = [("0022", "UTC"), ("0077", "Asia/Tokyo")].map(|(umask, zone)| {
        let work = Work::new(RECIPE);
        run(work
            .command("cp")
            .arg("-r")
            .arg(first.path("layout"))
            .arg("layout"));
        let script = format!("umask {umask} && exec \"$0\" build -o out");
        run(work
            .command("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_fledge")])
            .env("TZ", zone));
        ["out/app.squashfs", "out/app.manifest.json"].map(|name| fs::read(work.path(name)).unwrap())
    });
    assert!(results[0] == results[1]);
}

#[test]
fn an_index_gives_its_platform_or_says_which_it_has() {
    let work = work("");
    let read = |name: &str| fs::read(work.path(name)).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&read("layout/index.json")).unwrap();
    let of = |platform: &str| {
        let mut image = index["manifests"][0].clone();
        image["annotations"] = serde_json::json!({});
        image["platform"] = serde_json::json!({ "os": "linux", "architecture": platform });
        image
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let several = serde_json::json!({
        "schemaVersion": 2, "mediaType": kind, "manifests": [of("s390x"), of("amd64")],
    })
    .to_string();
    let digest = hex::encode(Sha256::digest(&several));
    work.write(&format!("layout/blobs/sha256/{digest}"), &several);
    let outer = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": kind, "digest": format!("sha256:{digest}"), "size": several.len(),
            "annotations": { "org.opencontainers.image.ref.name": "1" },
        }],
    });
    work.write("layout/index.json", &outer.to_string());
    work.build();
    work.write(
        "fledge.toml",
        &format!("{RECIPE}platform = \"linux/riscv64\"\n"),
    );
    work.fledge(&["build", "-o", "out"])
        .assert()
        .code(1)
        .stderr(contains("linux/s390x").and(contains("linux/amd64")));
}

#[test]
fn a_folder_that_holds_its_own_output_is_refused() {
    let work = Work::new(&RECIPE.replace("oci:layout:1", "dir:."));
    for output in [".", "out/new"] {
        work.fledge(&["build", "-o", output])
            .assert()
            .code(1)
            .stderr(contains("is inside dir:").and(contains("-o")));
    }
    assert!(!work.path("out").exists());
}
