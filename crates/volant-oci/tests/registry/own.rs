//! What is taken from the calling user's own environment, which is given to this test run anew.

use std::{env, process::Command};

use volant_oci::{Client, Credentials, Registries, RegistryError};

use crate::tools::{Registry, chain, quick};

const INSIDE: &str = "VOLANT_TEST_REFERENCE";

/// What pulling the manifest says, when this is the run with another environment.
async fn pulled() -> Option<Result<(), RegistryError>> {
    let reference = env::var(INSIDE).ok()?.parse().unwrap();
    let client = Client::new(Credentials::from_env(), Registries::default(), quick());
    Some(client.manifest(&reference).await.map(drop))
}

/// `command` with this test of this program as its last arguments, and nothing of the caller's environment.
fn again(mut command: Command, test: &str, reference: &str) {
    let output = command
        .arg(env::current_exe().unwrap())
        .args(["--exact", test])
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap())
        .env(INSIDE, reference)
        .output()
        .unwrap_or_else(|error| panic!("{command:?} is needed by this test: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("1 passed"), "{stdout}");
}

#[tokio::test]
async fn a_login_that_skopeo_writes_without_a_session_is_taken() {
    if let Some(answer) = pulled().await {
        let error = chain(&answer.unwrap_err());
        assert!(error.contains("no such image"), "{error}");
        return;
    }
    let registry = Registry::guarded();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs tmpfs /run && skopeo login --tls-verify=false -u bob -p s3cret \"$0\" && exec \"$@\"";
    command.args(["--map-root-user", "--mount", "sh", "-c", script]);
    command.arg(&registry.host);
    let test = "own::a_login_that_skopeo_writes_without_a_session_is_taken";
    again(command, test, &format!("{}/app:v1", registry.host));
}

#[tokio::test]
async fn a_helper_that_is_not_installed_is_named_where_a_login_is_needed() {
    if let Some(answer) = pulled().await {
        let error = chain(&answer.unwrap_err());
        let expected = "; the credential helper docker-credential-there-is-none is not installed";
        assert!(
            error.contains("skopeo login") && error.ends_with(expected),
            "{error}"
        );
        return;
    }
    let registry = Registry::guarded();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(path, r#"{"credsStore": "there-is-none"}"#).unwrap();
    let mut command = Command::new("env");
    command.arg(format!("DOCKER_CONFIG={}", dir.path().display()));
    let test = "own::a_helper_that_is_not_installed_is_named_where_a_login_is_needed";
    again(command, test, &format!("{}/app:v1", registry.host));
}
