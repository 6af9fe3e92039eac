//! What needs no Volant: the host looked at, the version and the help.

use std::path::Path;

use serde_json::Value;

use crate::{stdout, volar_at};

#[test]
fn a_host_is_looked_at_without_being_changed() {
    let output = volar_at(Path::new("/nonexistent"))
        .args([
            "setup",
            "--dry-run",
            "--output",
            "json",
            "--subnet",
            "10.201.0.0/16",
        ])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["dry_run"], true);
    assert_eq!(report["ready"], output.status.success());
    let checks = report["checks"].as_array().unwrap();
    assert!(
        checks
            .iter()
            .any(|check| check["name"] == "platform" && check["level"] == "ok"),
        "{report}"
    );
    let is_missing = checks.iter().any(|check| check["level"] == "missing");
    assert_ne!(is_missing, output.status.success(), "{report}");
}

#[test]
fn the_version_is_told() {
    let version = env!("CARGO_PKG_VERSION");
    for arguments in ["version", "--version"] {
        volar_at(Path::new("/nonexistent"))
            .arg(arguments)
            .assert()
            .success()
            .stdout(format!("volar {version}\n"));
    }
    let help = stdout(volar_at(Path::new("/nonexistent")).arg("--help"));
    assert!(
        help.contains("Exit codes:") && help.contains("VOLANT_HOST"),
        "{help}"
    );
}
