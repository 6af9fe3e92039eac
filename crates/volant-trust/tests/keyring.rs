//! The folder of trusted keys, and what is made of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tempfile::TempDir;
use volant_spec::Name;
use volant_trust::{
    Decision, Keyring, Loaded, Policy, ProblemKind, SecretKey, Untrusted, Verdict, examine, judge,
    key_file,
};

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
}

fn load(folder: &Path) -> Loaded {
    Keyring::load(folder, fs::metadata(folder).unwrap().uid())
}

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn only_for(key: &SecretKey, plugins: &[&str]) -> String {
    let plugins: Vec<_> = plugins.iter().map(|text| text.parse().unwrap()).collect();
    key_file(&key.public(), &plugins, Some("a comment")).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// The names of the keys, and those of the files with problems.
fn names(loaded: &Loaded) -> (Vec<&str>, Vec<&str>) {
    (
        loaded.keyring.keys().map(|key| key.name.as_str()).collect(),
        loaded
            .problems
            .iter()
            .map(|problem| problem.path.file_name().unwrap().to_str().unwrap())
            .collect(),
    )
}

#[test]
fn both_forms_are_read_and_other_files_are_not_looked_at() {
    let folder = folder();
    let (wide, narrow) = (key(), key());
    write(folder.path(), "wide.pub", &wide.public().to_file());
    write(folder.path(), "narrow.toml", &only_for(&narrow, &["caddy"]));
    write(folder.path(), "README", "text");
    write(folder.path(), "old.pub.bak", "text");
    write(folder.path(), ".#wide.pub", "text");
    fs::create_dir(folder.path().join("folder")).unwrap();
    let loaded = load(folder.path());
    assert_eq!(names(&loaded), (vec!["narrow", "wide"], vec![]));
    let keys: Vec<_> = loaded.keyring.keys().collect();
    assert_eq!(keys[0].plugins[0].as_str(), "caddy");
    assert_eq!(keys[0].comment.as_deref(), Some("a comment"));
    assert_eq!(keys[1].plugins[0].as_str(), "*");
    assert_eq!(keys[1].key, wide.public());
}

#[test]
fn a_folder_that_is_not_there_has_no_keys_and_no_problem() {
    let loaded = Keyring::load(Path::new("/nonexistent/trust.d"), 0);
    assert_eq!(names(&loaded), (vec![], vec![]));
}

#[test]
fn a_bad_file_is_named_and_leaves_the_others_good() {
    let folder = folder();
    write(folder.path(), "good.pub", &key().public().to_file());
    write(folder.path(), "bad.toml", "public_key = 'x'\nplugin = []\n");
    write(folder.path(), "secret.pub", &key().to_file(None).unwrap());
    write(folder.path(), "large.pub", &" ".repeat(70_000));
    fs::write(folder.path().join("binary.pub"), b"\xff\xfe").unwrap();
    fs::create_dir(folder.path().join("folder.pub")).unwrap();
    symlink("nowhere", folder.path().join("link.pub")).unwrap();
    let loaded = load(folder.path());
    let bad = [
        "bad.toml",
        "binary.pub",
        "folder.pub",
        "large.pub",
        "link.pub",
        "secret.pub",
    ];
    assert_eq!(names(&loaded), (vec!["good"], bad.to_vec()));
    let toml = &loaded.problems[0];
    assert!(toml.to_string().ends_with("bad.toml"), "{toml}");
    assert!(toml.kind.to_string().contains("line 2"), "{}", toml.kind);
    let secret = loaded.problems[5].kind.to_string();
    assert!(secret.contains("secret key"), "{secret}");
}

#[test]
fn what_others_can_write_to_is_not_trusted() {
    let folder = folder();
    write(folder.path(), "group.pub", &key().public().to_file());
    write(folder.path(), "other.toml", &only_for(&key(), &["*"]));
    let mode = |name: &str, mode| {
        let path = folder.path().join(name);
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    mode("group.pub", 0o664);
    mode("other.toml", 0o646);
    let loaded = load(folder.path());
    assert_eq!(names(&loaded), (vec![], vec!["group.pub", "other.toml"]));
    let told = loaded.problems[0].kind.to_string();
    assert!(told.contains("0664"), "{told}");

    mode("group.pub", 0o644);
    mode("", 0o775);
    let loaded = load(folder.path());
    assert_eq!(loaded.keyring.keys().count(), 0);
    assert!(matches!(
        loaded.problems[0].kind,
        ProblemKind::Writable(0o775)
    ));
}

#[test]
fn what_another_user_owns_is_not_trusted() {
    let folder = folder();
    write(folder.path(), "a.pub", &key().public().to_file());
    let me = fs::metadata(folder.path()).unwrap().uid();
    let loaded = Keyring::load(folder.path(), me + 1);
    assert_eq!(loaded.keyring.keys().count(), 0);
    assert!(matches!(
        loaded.problems[0].kind,
        ProblemKind::Owner { found, expected } if found == me && expected == me + 1
    ));
}

#[test]
fn of_two_files_with_one_name_the_narrower_is_taken() {
    let folder = folder();
    let key = key();
    write(folder.path(), "a.pub", &key.public().to_file());
    write(folder.path(), "a.toml", &only_for(&key, &["caddy"]));
    let loaded = load(folder.path());
    assert_eq!(names(&loaded), (vec!["a"], vec!["a.pub"]));
    assert_eq!(
        loaded.keyring.keys().next().unwrap().plugins[0].as_str(),
        "caddy"
    );
}

#[test]
fn a_folder_without_end_is_not_read_to_its_end() {
    let folder = folder();
    for number in 0..1030 {
        write(folder.path(), &format!("{number:04}.pub"), "");
    }
    // None of them is a key, so none counts.
    assert_eq!(load(folder.path()).problems.len(), 1030);
    let file = key().public().to_file();
    for number in 0..1030 {
        write(folder.path(), &format!("{number:04}.pub"), &file);
    }
    let loaded = load(folder.path());
    assert_eq!(loaded.keyring.keys().count(), 1024);
    assert!(matches!(loaded.problems[0].kind, ProblemKind::TooMany));
}

#[test]
fn a_signature_is_trusted_or_told_why_not() {
    let folder = folder();
    let (wide, narrow, unknown) = (key(), key(), key());
    write(folder.path(), "wide.pub", &wide.public().to_file());
    write(
        folder.path(),
        "narrow.toml",
        &only_for(&narrow, &["acme-*", "b"]),
    );
    let keyring = load(folder.path()).keyring;
    let bytes = b"{\"name\":\"caddy\"}";
    let sign = |key: &SecretKey| key.sign(bytes, "timestamp:9\tname:caddy").unwrap();
    let examine = |name_: &str, bytes: &[u8], signature: Option<&str>| {
        examine(&keyring, &name(name_), bytes, signature.map(str::as_bytes))
    };

    let Verdict::Trusted(trusted) = examine("caddy", bytes, Some(&sign(&wide))) else {
        panic!("it is trusted");
    };
    assert_eq!(trusted.key_name, "wide");
    assert_eq!(trusted.key_id, wide.public().id());
    assert_eq!(trusted.timestamp, Some(9));
    assert_eq!(trusted.trusted_comment, "timestamp:9\tname:caddy");
    assert!(matches!(
        examine("acme-web", bytes, Some(&sign(&narrow))),
        Verdict::Trusted(_)
    ));

    let comment = sign(&wide).replace("timestamp:9", "timestamp:8");
    let id = |key: &SecretKey| key.public().id().to_string();
    let cases = [
        (examine("caddy", bytes, None), "is not signed".to_owned()),
        (
            examine("caddy", bytes, Some("x")),
            "no signature".to_owned(),
        ),
        (
            examine("caddy", bytes, Some(&sign(&unknown))),
            format!("the key {}, which is not trusted", id(&unknown)),
        ),
        (
            examine("caddy", bytes, Some(&sign(&narrow))),
            "trusted for 'acme-*', 'b' and not for plugins called 'caddy'".to_owned(),
        ),
        (
            examine("caddy", b"changed", Some(&sign(&wide))),
            format!("not the one that the key wide ({}) signed", id(&wide)),
        ),
        (
            examine("caddy", bytes, Some(&comment)),
            "its trusted comment is another".to_owned(),
        ),
    ];
    for (verdict, expected) in cases {
        let Verdict::Untrusted(reason) = verdict else {
            panic!("{expected}: it is trusted");
        };
        let reason = reason.to_string();
        assert!(reason.contains(&expected), "{reason}");
    }
}

#[test]
fn a_key_that_borrows_a_trusted_id_is_not_trusted() {
    let folder = folder();
    let (trusted, thief) = (key(), key());
    write(folder.path(), "trusted.pub", &trusted.public().to_file());
    let keyring = load(folder.path()).keyring;
    let ours = trusted.sign(b"a", "c").unwrap();
    let theirs = thief.sign(b"a", "c").unwrap();
    let (ours, theirs): (Vec<_>, Vec<_>) = (ours.lines().collect(), theirs.lines().collect());
    // The id stands behind the two bytes of the algorithm.
    let id = STANDARD.decode(ours[1]).unwrap();
    let mut line = STANDARD.decode(theirs[1]).unwrap();
    line[2..10].copy_from_slice(&id[2..10]);
    let forged = [theirs[0], &STANDARD.encode(line), theirs[2], theirs[3]].join("\n");
    let verdict = examine(&keyring, &name("a"), b"a", Some(forged.as_bytes()));
    assert!(
        matches!(verdict, Verdict::Untrusted(Untrusted::BadSignature { .. })),
        "{verdict:?}"
    );
}

#[test]
fn a_key_in_two_files_may_sign_what_either_says() {
    let folder = folder();
    let key = key();
    write(folder.path(), "a.toml", &only_for(&key, &["caddy"]));
    write(folder.path(), "b.toml", &only_for(&key, &["nginx"]));
    let keyring = load(folder.path()).keyring;
    let signature = key.sign(b"x", "").unwrap();
    for (plugin, expected) in [("caddy", true), ("nginx", true), ("other", false)] {
        let verdict = examine(&keyring, &name(plugin), b"x", Some(signature.as_bytes()));
        assert_eq!(matches!(verdict, Verdict::Trusted(_)), expected, "{plugin}");
    }
}

#[test]
fn the_policy_decides_what_becomes_of_the_untrusted() {
    let keyring = Keyring::default();
    let judge = |policy| judge(policy, &keyring, &name("a"), b"x", None);
    assert_eq!(
        judge(Policy::Require),
        Decision::Refused(Untrusted::NotSigned)
    );
    assert_eq!(judge(Policy::Warn), Decision::Warned(Untrusted::NotSigned));
    assert_eq!(judge(Policy::Off), Decision::Unchecked);
    assert_eq!(Policy::default(), Policy::Require);
}
