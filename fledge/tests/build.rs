//! `fledge build` from the outside: its command line, its files, its bytes.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::{
    fs::{self, Permissions},
    io::Read,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use flate2::read::GzDecoder;
use predicates::str::contains;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use volant_spec::Manifest;

/// From the quick start, letter for letter.
const QUICK_START: &str = r#"[plugin]
name = "myapp"
strategy = "initramfs"

[[file_mappings]]
source = "./mybinary"
dest = "/usr/local/bin/mybinary"
mode = 0o755

[workload]
entrypoint = ["/usr/local/bin/mybinary"]
"#;

const SITE: &str = "\n[[file_mappings]]\nsource = \"site\"\ndest = \"/srv\"\n";

/// The headers of a static x86-64 program; enough for all that fledge looks at.
fn program() -> Vec<u8> {
    let mut bytes = vec![0; 64 + 56];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = 1;
    bytes
}

/// A folder with all that the quick start needs, kestrel beside it.
struct Project(TempDir);

impl Project {
    fn new(recipe: &str) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        project.write("fledge.toml", recipe.as_bytes());
        project.write("kestrel", &program());
        project.write("mybinary", &program());
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn fledge(&self) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::cargo_bin("fledge").unwrap();
        command
            .current_dir(self.0.path())
            .args(["build", "--kestrel", "kestrel"]);
        command
    }

    fn fails_with(&self, expected: &str) {
        self.fledge()
            .args(["--output", "out"])
            .assert()
            .code(1)
            .stderr(contains(expected));
        let left = fs::read_dir(self.path("out")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{expected}: something was left behind");
    }

    fn listing(&self) -> String {
        let mut cpio = Vec::new();
        GzDecoder::new(&*fs::read(self.path("myapp.cpio.gz")).unwrap())
            .read_to_end(&mut cpio)
            .unwrap();
        self.write("myapp.cpio", &cpio);
        let archive = fs::File::open(self.path("myapp.cpio")).unwrap();
        let output = Command::new("cpio")
            .args(["-tvn", "--quiet"])
            .stdin(archive)
            .output()
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn the_quick_start_gives_a_plugin_that_can_be_installed() {
    let project = Project::new(QUICK_START);
    project.fledge().assert().success().stdout(contains(
        "volar plugins install --manifest myapp.manifest.json",
    ));

    let manifest =
        Manifest::parse(&fs::read(project.path("myapp.manifest.json")).unwrap()).unwrap();
    let initramfs = fs::read(project.path("myapp.cpio.gz")).unwrap();
    assert_eq!(manifest.name.as_str(), "myapp");
    let artifact = manifest.initramfs.unwrap();
    assert_eq!(artifact.url, "myapp.cpio.gz");
    assert_eq!(artifact.size, Some(initramfs.len() as u64));
    assert_eq!(
        artifact.checksum.hex(),
        hex::encode(Sha256::digest(&initramfs))
    );
    assert_eq!(manifest.workload.entrypoint, ["/usr/local/bin/mybinary"]);
    for name in ["myapp.manifest.json", "myapp.cpio.gz"] {
        let mode = fs::metadata(project.path(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o644, "{name}");
    }
}

#[test]
fn the_archive_is_what_cpio_expects() {
    if Command::new("cpio")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        eprintln!("SKIPPED: cpio is not installed");
        return;
    }
    let project = Project::new(&format!("{QUICK_START}{SITE}"));
    fs::create_dir(project.path("site")).unwrap();
    project.write("site/index.html", b"<h1>hello</h1>");
    symlink("index.html", project.path("site/home")).unwrap();
    project.fledge().assert().success();

    let listing = project.listing();
    let expected = [
        ("-rwxr-xr-x", "init"),
        ("-rwxr-xr-x", "usr/local/bin/mybinary"),
        ("drwxr-xr-x", "usr/local/bin"),
        ("drwxrwxrwt", "tmp"),
        ("crw-------", "dev/console"),
        ("-rw-r--r--", "srv/index.html"),
        ("lrwxrwxrwx", "srv/home -> index.html"),
    ];
    for (mode, path) in expected {
        let line = listing
            .lines()
            .find(|line| line.ends_with(&format!(" {path}")));
        assert!(
            line.is_some_and(|line| line.starts_with(mode)),
            "{mode} {path} in:\n{listing}"
        );
        assert!(
            line.is_some_and(|line| line.contains(" 0        0 ")),
            "{path} is not root's:\n{listing}"
        );
    }
}

#[test]
fn another_day_folder_and_umask_give_the_same_bytes() {
    let results = [(0o022, 0), (0o077, 500_000_000)].map(|(umask, seconds)| {
        let project = Project::new(&format!("{QUICK_START}{SITE}"));
        fs::create_dir(project.path("site")).unwrap();
        // Written in another order, too.
        let mut names = ["b.html", "a.html", "c.html"];
        names.rotate_left(usize::from(seconds > 0));
        for name in names {
            project.write(&format!("site/{name}"), name.as_bytes());
        }
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + seconds);
        for name in ["mybinary", "kestrel", "site", "site/a.html"] {
            let path = project.path(name);
            let mode = fs::metadata(&path).unwrap().permissions().mode() & !umask;
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
        }
        let status = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "umask {umask:o} && exec \"$0\" build --kestrel kestrel"
            ))
            .arg(assert_cmd::cargo::cargo_bin("fledge"))
            .current_dir(project.0.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        ["myapp.cpio.gz", "myapp.manifest.json"].map(|name| fs::read(project.path(name)).unwrap())
    });
    assert!(results[0] == results[1]);
}

#[test]
fn a_recipe_elsewhere_is_built_into_another_folder() {
    let project = Project::new(QUICK_START);
    let elsewhere = tempfile::tempdir().unwrap();
    assert_cmd::Command::cargo_bin("fledge")
        .unwrap()
        .current_dir(elsewhere.path())
        .args(["build", "--output", "a/b", "--config"])
        .arg(project.path("fledge.toml"))
        .arg("--kestrel")
        .arg(project.path("kestrel"))
        .assert()
        .success();
    assert!(elsewhere.path().join("a/b/myapp.manifest.json").exists());
    assert!(!project.path("myapp.manifest.json").exists());
}

#[test]
fn what_cannot_be_built_is_told_and_leaves_nothing() {
    let cases = [
        ("name = \"myapp\"", "nam = \"myapp\"", "unknown field `nam`"),
        (
            "strategy = \"initramfs\"",
            "strategy = \"oci_rootfs\"",
            "needs an [oci_source]",
        ),
        ("./mybinary", "./none", "none: No such file"),
        ("./mybinary", "/dev/null", "/dev/null is neither a file"),
        ("./mybinary", ".", "mode is for a file"),
        (
            "dest = \"/usr/local/bin/mybinary\"",
            "dest = \"/init\"",
            "/init is the agent",
        ),
        (
            "dest = \"/usr/local/bin/mybinary\"",
            "dest = \"/app\"",
            "not among the files",
        ),
        ("mode = 0o755", "mode = 0o644", "may not be executed"),
    ];
    for (from, to, expected) in cases {
        Project::new(&QUICK_START.replacen(from, to, 1)).fails_with(expected);
    }
}

#[test]
fn a_program_whose_linker_is_missing_is_refused() {
    let project = Project::new(QUICK_START);
    fs::copy(std::env::current_exe().unwrap(), project.path("mybinary")).unwrap();
    project.fails_with("needs /lib64/ld-linux-x86-64.so.2");
}

#[test]
fn an_agent_that_could_not_start_is_refused() {
    let project = Project::new(QUICK_START);
    project.write("kestrel", b"#!/bin/sh\n");
    project.fails_with("cannot be the guest's agent");
    fs::remove_file(project.path("kestrel")).unwrap();
    project.fails_with("install the package volant-kernel or give --kestrel PATH");
}

#[test]
fn a_build_that_fails_keeps_the_last_one() {
    let project = Project::new(QUICK_START);
    project.fledge().assert().success();
    let before = fs::read(project.path("myapp.manifest.json")).unwrap();
    fs::remove_file(project.path("mybinary")).unwrap();
    project.fledge().assert().code(1);
    assert_eq!(
        before,
        fs::read(project.path("myapp.manifest.json")).unwrap()
    );
    assert!(Path::new(&project.path("myapp.cpio.gz")).exists());
}

#[test]
fn the_boot_initramfs_holds_the_agent_alone() {
    let archive = fledge::initramfs::boot(b"kestrel itself").unwrap();
    let text = String::from_utf8_lossy(&archive);
    assert!(text.starts_with("070701"));
    assert!(text.contains("kestrel itself") && text.contains("dev/console"));
}
