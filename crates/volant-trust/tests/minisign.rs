//! Both directions against the real `minisign`: what it writes is read here, what is written here it reads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;
use volant_trust::{
    OpenError, PublicKey, SecretKey, SecretKeyFile, Signature, VerifyError, verify,
};

/// Runs minisign in `folder`, answering with `input` when it asks for a password.
fn minisign(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("minisign")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs minisign: apt-get install minisign");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn succeed(folder: &Path, arguments: &[&str], input: &str) -> String {
    let output = minisign(folder, arguments, input);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap()
}

const BYTES: &[u8] = b"{\"name\": \"caddy\"}\n";

#[test]
fn keys_and_signatures_of_minisign_are_read() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    succeed(folder, &["-G", "-W", "-p", "a.pub", "-s", "a.key"], "");
    fs::write(folder.join("file"), BYTES).unwrap();

    let public = PublicKey::parse(&read(folder, "a.pub")).unwrap();
    // The comment has the key's id, which minisign writes without leading zeros.
    let key_line = |file: &str| file.lines().last().map(str::to_owned);
    assert_eq!(
        key_line(&read(folder, "a.pub")),
        key_line(&public.to_file())
    );
    let secret = SecretKeyFile::parse(&read(folder, "a.key")).unwrap();
    assert!(!secret.needs_password());
    assert_eq!(secret.open(None).unwrap().public(), public);

    for (mode, comment) in [("-S", "timestamp:5\tfile:x"), ("-Sl", "as in old times")] {
        let arguments = [mode, "-s", "a.key", "-t", comment, "-m", "file"];
        succeed(folder, &arguments, "");
        let signature = Signature::parse(read(folder, "file.minisig").as_bytes()).unwrap();
        assert_eq!(signature.trusted_comment(), comment);
        assert_eq!(verify(&public, BYTES, &signature), Ok(()), "{mode}");
        assert_eq!(
            verify(&public, b"other", &signature),
            Err(VerifyError::Content)
        );
    }
    // Without a comment of ours it says when.
    succeed(folder, &["-S", "-s", "a.key", "-m", "file"], "");
    let signature = Signature::parse(read(folder, "file.minisig").as_bytes()).unwrap();
    assert!(
        signature
            .timestamp()
            .is_some_and(|time| time > 1_600_000_000)
    );
}

#[test]
fn keys_and_signatures_of_ours_are_read_by_minisign() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let key = SecretKey::generate().unwrap();
    fs::write(folder.join("file"), BYTES).unwrap();
    fs::write(folder.join("a.pub"), key.public().to_file()).unwrap();
    fs::write(folder.join("a.key"), key.to_file(None).unwrap().as_bytes()).unwrap();

    let comment = "timestamp:5\tfile:file\tname:caddy";
    fs::write(
        folder.join("file.minisig"),
        key.sign(BYTES, comment).unwrap(),
    )
    .unwrap();
    let told = succeed(folder, &["-V", "-H", "-p", "a.pub", "-m", "file"], "");
    assert!(
        told.contains("Signature and comment signature verified"),
        "{told}"
    );
    assert!(told.contains(comment), "{told}");
    let line = key.public().to_string();
    succeed(folder, &["-V", "-P", &line, "-m", "file"], "");

    succeed(folder, &["-S", "-s", "a.key", "-m", "file"], "");
    let signature = Signature::parse(read(folder, "file.minisig").as_bytes()).unwrap();
    assert_eq!(verify(&key.public(), BYTES, &signature), Ok(()));

    fs::write(folder.join("file"), b"changed").unwrap();
    let refused = minisign(folder, &["-V", "-p", "a.pub", "-m", "file"], "");
    assert!(!refused.status.success());
}

#[test]
fn the_longest_trusted_comment_is_read_by_both() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let key = SecretKey::generate().unwrap();
    fs::write(folder.join("file"), BYTES).unwrap();
    let longest = (1..9000)
        .rev()
        .find_map(|len| key.sign(BYTES, &"c".repeat(len)).ok())
        .unwrap();
    fs::write(folder.join("file.minisig"), longest).unwrap();
    let line = key.public().to_string();
    succeed(folder, &["-V", "-P", &line, "-m", "file"], "");
}

#[test]
fn keys_with_a_password_are_opened_by_both() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    fs::write(folder.join("file"), BYTES).unwrap();

    let arguments = ["-G", "-p", "theirs.pub", "-s", "theirs.key"];
    succeed(folder, &arguments, "pässword\npässword\n");
    let file = || SecretKeyFile::parse(&read(folder, "theirs.key")).unwrap();
    assert!(file().needs_password());
    assert_eq!(file().open(None).unwrap_err(), OpenError::NoPassword);
    assert_eq!(
        file().open(Some("password")).unwrap_err(),
        OpenError::WrongPassword
    );
    let theirs = file().open(Some("pässword")).unwrap();
    assert_eq!(theirs.public().to_file(), read(folder, "theirs.pub"));

    let ours = SecretKey::generate().unwrap();
    let text = ours.to_file(Some("secret")).unwrap();
    fs::write(folder.join("ours.key"), text.as_bytes()).unwrap();
    let arguments = ["-S", "-s", "ours.key", "-m", "file"];
    assert!(!minisign(folder, &arguments, "wrong\n").status.success());
    succeed(folder, &arguments, "secret\n");
    let signature = Signature::parse(read(folder, "file.minisig").as_bytes()).unwrap();
    assert_eq!(verify(&ours.public(), BYTES, &signature), Ok(()));
}
