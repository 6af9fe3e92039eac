//! Files into a guest and out of it; and guests that send what nobody asked for.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt, str::contains};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use crate::{
    fake::{FakeGateway, running::Archive},
    volar,
};

/// An archive that may say anything.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_mtime(1_000_000_000);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", 0o755, b"")
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", 0o640, content.as_bytes())
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn sends(gateway: &FakeGateway, path: &str, is_folder: bool, tar: Tar) {
    let archive = Archive {
        is_folder,
        tar: tar.done(),
        is_cut: false,
    };
    gateway.kept().files.insert(path.to_owned(), archive);
}

fn cp(gateway: &FakeGateway, folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = volar(gateway, "vms cp");
    command.args(arguments).current_dir(folder.path());
    command
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// What an archive has: names, with what a link leads to or a file says.
fn listed(tar: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let link = entry
            .link_name()
            .unwrap()
            .map(|link| link.to_str().unwrap().to_owned());
        let mut said = String::new();
        entry.read_to_string(&mut said).unwrap();
        (name, link.map_or(said, |link| format!("-> {link}")))
    });
    entries.collect()
}

#[test]
fn files_come_out_as_docker_would_put_them() {
    let (gateway, here) = (FakeGateway::with(&["web"]), tempfile::tempdir().unwrap());
    sends(
        &gateway,
        "/etc/motd",
        false,
        Tar::new().file("motd", "hello"),
    );
    let conf = || {
        Tar::new()
            .folder("conf/")
            .file("conf/a", "A")
            .folder("conf/d/")
            .link("conf/d/up", "../a")
            .entry(EntryType::Link, "conf/hard", "conf/a", 0o640, b"")
    };
    sends(&gateway, "/conf", true, conf());
    sends(
        &gateway,
        "/conf/.",
        true,
        Tar::new().folder("./").file("./a", "A").folder("./d/"),
    );
    let path = |name: &str| here.path().join(name);
    fs::create_dir(path("there")).unwrap();
    fs::write(path("old"), "old").unwrap();
    symlink("old", path("lead")).unwrap();
    for (arguments, made) in [
        (["web:/etc/motd", "."], "motd"),
        (["web:/etc/motd", "there"], "there/motd"),
        (["web:/etc/motd", "new"], "new"),
        (["web:etc/motd", "lead"], "old"),
    ] {
        cp(&gateway, &here, &arguments)
            .assert()
            .success()
            .stdout("")
            .stderr("");
        assert_eq!(read(path(made)), "hello", "{arguments:?}");
    }
    assert!(path("lead").is_symlink());
    let meta = fs::metadata(path("new")).unwrap();
    assert_eq!(
        (meta.permissions().mode() & 0o7777, meta.mtime()),
        (0o640, 1_000_000_000)
    );
    for (arguments, made) in [
        (["web:/conf", "there"], "there/conf"),
        (["web:/conf", "other"], "other"),
        (["web:/conf/.", "there"], "there"),
        (["web:/conf/.", "third"], "third"),
    ] {
        cp(&gateway, &here, &arguments).assert().success();
        assert_eq!(read(path(made).join("a")), "A", "{arguments:?}");
        assert!(path(made).join("d").is_dir());
    }
    let other = path("other");
    assert_eq!(
        fs::read_link(other.join("d/up")).unwrap(),
        Path::new("../a")
    );
    let inode = |name: &str| fs::metadata(other.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("hard"));
    // What is there is replaced, again and again.
    cp(&gateway, &here, &["web:/conf/.", "third"])
        .assert()
        .success();
    for (arguments, expected) in [
        (["web:/conf", "old"], "a folder cannot become a file"),
        (["web:/etc/motd", "none/"], "there is no folder none/"),
        (["a", "b"], "must be in a VM"),
        (["web:/a", "db:/b"], "both are in VMs"),
    ] {
        cp(&gateway, &here, &arguments)
            .assert()
            .code(2)
            .stderr(contains(expected));
    }
    cp(&gateway, &here, &["web:/none", "."])
        .assert()
        .code(3)
        .stderr(contains("no /none"));
    cp(&gateway, &here, &["web:/etc/motd", "no/way"])
        .assert()
        .code(1)
        .stderr(contains("cannot copy into no"));
}

#[test]
fn a_hostile_guest_writes_nothing_outside() {
    let (gateway, here) = (FakeGateway::with(&["web"]), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    let (out, victim_name) = (outside.path().to_str().unwrap(), victim.to_str().unwrap());
    let target = here.path().join("target");
    fs::create_dir(&target).unwrap();
    let cases = [
        (
            "dots",
            Tar::new().folder("x/").file("x/../../evil", "evil"),
            "leads out",
        ),
        (
            "absolute",
            Tar::new().file(&format!("{out}/evil"), "evil"),
            "leads out",
        ),
        (
            "another",
            Tar::new().file("x", "").file("evil", "evil"),
            "something else",
        ),
        (
            "through a link",
            Tar::new()
                .folder("x/")
                .link("x/l", out)
                .file("x/l/evil", "evil"),
            "a folder where a file is to be, or the other way round",
        ),
        (
            "as a link",
            Tar::new().link("x", out).file("x/evil", "evil"),
            "a folder where a file is to be, or the other way round",
        ),
        (
            "hard link",
            Tar::new()
                .folder("x/")
                .entry(EntryType::Link, "x/h", victim_name, 0o644, b""),
            "leads out",
        ),
        (
            "hard link with dots",
            Tar::new()
                .folder("x/")
                .entry(EntryType::Link, "x/h", "x/../../../victim", 0o644, b""),
            "leads out",
        ),
        (
            "hard link through a link",
            Tar::new().folder("x/").link("x/l", out).entry(
                EntryType::Link,
                "x/h",
                "x/l/victim",
                0o644,
                b"",
            ),
            "cannot make x/h",
        ),
        ("nothing", Tar::new(), "sent nothing"),
    ];
    for (what, tar, expected) in cases {
        sends(&gateway, "/x", true, tar);
        cp(&gateway, &here, &["web:/x", "target"])
            .assert()
            .code(1)
            .stderr(contains(expected));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{what}");
        assert_eq!(read(&victim), "mine", "{what}");
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 1, "{what}");
        let _ = fs::remove_dir_all(target.join("x"));
        let _ = fs::remove_file(target.join("x"));
    }
    // A link is a link: a file in its place is not written through it.
    let tar = Tar::new()
        .folder("x/")
        .link("x/l", victim_name)
        .file("x/l", "evil");
    sends(&gateway, "/x", true, tar);
    cp(&gateway, &here, &["web:/x", "target"])
        .assert()
        .success();
    assert_eq!(
        (read(&victim), read(target.join("x/l"))),
        ("mine".to_owned(), "evil".to_owned())
    );
    // A guest's owner gets no rights here, and devices are left out.
    let tar = Tar::new()
        .folder("y/")
        .entry(EntryType::Regular, "y/suid", "", 0o6755, b"#!")
        .entry(EntryType::Char, "y/null", "", 0o666, b"")
        .entry(EntryType::Fifo, "y/pipe", "", 0o666, b"");
    sends(&gateway, "/y", true, tar);
    cp(&gateway, &here, &["web:/y", "target"])
        .assert()
        .success()
        .stderr(contains("left out y/null").and(contains("left out y/pipe")));
    let suid = fs::metadata(target.join("y/suid")).unwrap();
    assert_eq!(suid.permissions().mode() & 0o7777, 0o755);
    assert_eq!(suid.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(fs::read_dir(target.join("y")).unwrap().count(), 1);
}

#[test]
fn half_an_archive_is_no_success() {
    let (gateway, here) = (FakeGateway::with(&["web"]), tempfile::tempdir().unwrap());
    let mut tar = Tar::new().file("f", &"x".repeat(100_000)).done();
    // Whole as an archive, too: the break alone tells.
    for keep in [tar.len(), 50_000] {
        tar.truncate(keep);
        let archive = Archive {
            is_folder: false,
            tar: tar.clone(),
            is_cut: true,
        };
        gateway.kept().files.insert("/f".to_owned(), archive);
        cp(&gateway, &here, &["web:/f", "f"])
            .assert()
            .code(5)
            .stderr(contains("connection to Volant broke"));
        cp(&gateway, &here, &["web:/f", "-"]).assert().code(5);
    }
}

#[test]
fn an_archive_can_be_the_one_side() {
    let (gateway, here) = (FakeGateway::with(&["web"]), tempfile::tempdir().unwrap());
    let tar = Tar::new().file("f", "content").done();
    sends(&gateway, "/f", false, Tar::new().file("f", "content"));
    let output = cp(&gateway, &here, &["web:/f", "-"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, tar);
    cp(&gateway, &here, &["-", "web:/srv", "--archive"])
        .write_stdin(tar.clone())
        .assert()
        .success();
    let put = gateway.kept().put.clone();
    assert_eq!((put.tar, put.asked["path"].as_str()), (tar, "/srv"));
    assert_eq!(put.asked["keep_owner"], "true");
}

#[test]
fn files_go_in_as_docker_would_put_them() {
    let (gateway, here) = (FakeGateway::with(&["web"]), tempfile::tempdir().unwrap());
    let path = |name: &str| here.path().join(name);
    fs::create_dir_all(path("site/css")).unwrap();
    fs::write(path("site/a"), "A").unwrap();
    fs::hard_link(path("site/a"), path("site/b")).unwrap();
    symlink("/nowhere", path("site/css/l")).unwrap();
    let long = "n".repeat(120);
    fs::write(path("site/css").join(&long), "long").unwrap();
    symlink("site/a", path("lead")).unwrap();
    sends(&gateway, "/srv", true, Tar::new().folder("srv/"));
    sends(&gateway, "/etc/motd", false, Tar::new().file("motd", ""));
    let long_name = format!("site/css/{long}");
    let site: &[(&str, &str)] = &[
        ("site/", ""),
        ("site/a", "A"),
        ("site/b", "-> site/a"),
        ("site/css/", ""),
        ("site/css/l", "-> /nowhere"),
        (&long_name, "long"),
    ];
    let web = |suffix: &str| format!("web:{suffix}");
    let cases = vec![
        (
            vec!["site"],
            web("/srv"),
            "/srv",
            owned(site, "site", "site"),
        ),
        (vec!["site"], web("/new"), "/", owned(site, "site", "new")),
        (
            vec!["site/."],
            web("/srv"),
            "/srv",
            owned(&site[1..], "site/", ""),
        ),
        (
            vec!["site/a"],
            web("/srv"),
            "/srv",
            owned(&[("a", "A")], "a", "a"),
        ),
        (
            vec!["site/a"],
            web("/etc/motd"),
            "/etc",
            owned(&[("motd", "A")], "", ""),
        ),
        (
            vec!["lead"],
            web("/srv"),
            "/srv",
            owned(&[("lead", "-> site/a")], "", ""),
        ),
        (
            vec!["-L", "lead"],
            web("/srv"),
            "/srv",
            owned(&[("lead", "A")], "", ""),
        ),
    ];
    for (mut arguments, to, folder, expected) in cases {
        arguments.push(&to);
        cp(&gateway, &here, &arguments)
            .assert()
            .success()
            .stdout("")
            .stderr("");
        let put = gateway.kept().put.clone();
        assert_eq!(put.asked["path"], folder, "{arguments:?}");
        assert_eq!(put.asked["no_overwrite_dir_non_dir"], "true");
        assert_eq!(
            listed(&put.tar).into_iter().collect::<Vec<_>>(),
            expected,
            "{arguments:?}"
        );
    }
    cp(&gateway, &here, &["site", "web:/etc/motd"])
        .assert()
        .code(2);
    cp(&gateway, &here, &["none", "web:/srv"])
        .assert()
        .code(1)
        .stderr(contains("cannot read none"));
    cp(&gateway, &here, &["site", "none:/srv"]).assert().code(3);
}

fn owned(entries: &[(&str, &str)], from: &str, to: &str) -> Vec<(String, String)> {
    let mut entries: Vec<_> = entries
        .iter()
        .map(|(name, said)| {
            (
                name.replacen(from, to, 1),
                said.replacen(&format!("-> {from}"), &format!("-> {to}"), 1),
            )
        })
        .collect();
    entries.sort();
    entries
}
