//! From a registry's image to a plugin in a registry.

use std::fs;

use predicates::{prelude::*, str::contains};

use crate::{
    layout::RECIPE,
    work::{Registry, Tar, Work, run},
};

const MANIFEST: &str = "out/app.manifest.json";

impl Work {
    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let run = self.fledge(arguments).assert().success();
        serde_json::from_slice(&run.get_output().stdout).unwrap()
    }
}

#[test]
fn an_image_becomes_a_plugin_that_is_pushed_and_looked_at() {
    let registry = Registry::open();
    let image = format!("{}/library/app:1", registry.host);
    let work = Work::new(&RECIPE.replace("oci:layout:1", &image));
    work.image(
        &[Tar::new().busybox().end()],
        &["--config.entrypoint", "/bin/busybox"],
    );
    run(work
        .command("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--dest-tls-verify=false",
            "oci:layout:1",
        ])
        .arg(format!("docker://{image}")));

    let built = work.fledge(&["build", "-o", "out"]).assert().success();
    built.stdout(contains(
        "\nfledge keygen\nfledge sign out/app.manifest.json",
    ));
    let manifest = work.manifest();
    assert_eq!(manifest.image.as_deref(), Some(&*image));
    assert!(manifest.image_digest.unwrap().starts_with("sha256:"));

    work.fledge(&["keygen", "--no-password"]).assert().success();
    let built = work.fledge(&["build", "-o", "out"]).assert().success();
    built.stdout(contains("keygen").not());
    let to = format!("oci://{}/plugins/app:1", registry.host);
    let push = ["push", &to, MANIFEST];
    work.fledge(&push)
        .assert()
        .success()
        .stderr(contains("is not signed"));
    work.fledge(&["sign", MANIFEST]).assert().success();
    work.fledge(&push)
        .assert()
        .success()
        .stderr(contains("note").or(contains("warning")).not());
    assert_eq!(
        work.json(&["push", &to, MANIFEST, "--output", "json"])["signed"],
        true
    );

    let value = work.json(&["inspect", &to, "--output", "json"]);
    assert_eq!(value["kind"], "plugin");
    assert_eq!(value["signature"]["state"], "verified");
    assert_eq!(value["files"][0]["name"], "app.squashfs");
    let text = work.fledge(&["inspect", &to]).assert().success();
    text.stdout(contains("signature    verified, by "));

    refused(&work, &push);
}

/// Signatures that do not fit are not sent.
fn refused(work: &Work, push: &[&str; 3]) {
    let state = |more: &[&str]| {
        let value = work.json(&[&["inspect", MANIFEST, "--output", "json"], more].concat());
        value["signature"]["state"].as_str().unwrap().to_owned()
    };
    let refuses = |more: &[&str], expected: &str| {
        work.fledge(&[push, more].concat())
            .assert()
            .code(1)
            .stderr(contains("fledge sign out/app.manifest.json").and(contains(expected)));
    };
    let other = [
        "keygen",
        "--no-password",
        "-p",
        "other.pub",
        "-s",
        "other.key",
    ];
    work.fledge(&other).assert().success();
    assert_eq!(state(&["--public", "other.pub"]), "does not fit");
    refuses(&["--public", "other.pub"], "was made with the key");

    let manifest = fs::read_to_string(work.path(MANIFEST)).unwrap();
    work.write(MANIFEST, &format!("{manifest} "));
    assert_eq!(state(&[]), "does not fit");
    refuses(&[], "changed after they were signed");

    fs::rename(
        work.path("home/.config/volant/signing.pub"),
        work.path("mine.pub"),
    )
    .unwrap();
    assert_eq!(state(&[]), "not verified");
    work.fledge(push).assert().success().stderr(
        contains("note: the signature by ").and(contains("was not checked: --public FILE")),
    );
    refuses(&["--public", "mine.pub"], "changed after they were signed");

    work.write(&format!("{MANIFEST}.minisig"), "text");
    assert_eq!(state(&[]), "does not fit");
    refuses(&[], "app.manifest.json");
}
