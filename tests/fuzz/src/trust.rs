//! minisign's files and the files of trusted keys.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::OnceLock,
};

use tempfile::TempDir;
use volant_spec::Name;
use volant_trust::{
    Decision, Keyring, Policy, PublicKey, SecretKeyFile, Signature, TrustedKey, judge, verify,
};

const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
/// What the seed in the corpus is the signature of.
const SIGNED: &[u8] = b"test";
/// The trusted comment of the only signature that is right.
const COMMENT: &str = "timestamp:1633700835\tfile:test\tprehashed";

/// Keys, signatures and files of trusted keys. No bytes but the true ones are a signature.
pub fn signature(bytes: &[u8]) {
    let key = PublicKey::parse(KEY).expect("the key is a constant");
    if let Ok(signature) = Signature::parse(bytes) {
        let _ = signature.timestamp();
        if verify(&key, SIGNED, &signature).is_ok() {
            assert_eq!(signature.trusted_comment(), COMMENT);
        }
        assert!(verify(&key, b"other", &signature).is_err());
    }
    let trusted = TrustedKey {
        name: "key".to_owned(),
        key,
        plugins: Vec::new(),
        comment: None,
        path: "key.pub".into(),
    };
    let name: Name = "caddy".parse().expect("the name is a constant");
    let keyring = Keyring::from_iter([trusted]);
    let decision = judge(Policy::Require, &keyring, &name, SIGNED, Some(bytes));
    assert!(
        matches!(decision, Decision::Refused(_)),
        "a key for no plugin signs none"
    );
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(key) = PublicKey::parse(text) {
            assert_eq!(PublicKey::parse(&key.to_string()), Ok(key));
        }
        if let Ok(file) = SecretKeyFile::parse(text)
            && !file.needs_password()
        {
            let _ = file.open(None);
        }
        // Files are slow, and without this word there is no key in one.
        if text.contains("public_key") {
            key_file(bytes);
        }
    }
}

/// The file goes through a folder, as the types of its content are private.
fn key_file(bytes: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER
        .get_or_init(|| {
            let folder = TempDir::new().expect("a temporary folder can be made");
            fs::set_permissions(folder.path(), Permissions::from_mode(0o700))
                .expect("the folder is ours");
            folder
        })
        .path();
    let path = folder.join("a.toml");
    fs::write(&path, bytes).expect("the folder can be written to");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("the file is ours");
    let owner = fs::metadata(folder).expect("the folder is there").uid();
    let loaded = Keyring::load(folder, owner);
    assert_eq!(loaded.keyring.keys().count() + loaded.problems.len(), 1);
}
