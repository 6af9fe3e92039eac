//! What a VM is configured to be: when it is created, and later.

use std::fs;

use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::{Value, json};

use crate::{fake::FakeGateway, stdout, volar};

#[test]
fn create_says_how_the_workload_and_the_machine_are_to_be() {
    let (gateway, folder) = (FakeGateway::start(), tempfile::tempdir().unwrap());
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (token, seed) = (file("token", "s3cret\n"), file("seed", "#cloud-config\n"));
    let config = file(
        "config.toml",
        "user = \"file\"\nworkdir = \"/file\"\n[env]\nA = \"file\"\nB = \"file\"\n",
    );
    let arguments = format!(
        "vms create web --plugin caddy --cpu 2 --config {config} --env A=flag --secret token={token} \
         --secret-env TOKEN=token --secret-env DB=db --disk 2G --volume data:/data:1G --volume /srv/www:/www:ro \
         --restart on-failure --health-http /up --health-interval 5s --health-retries 2 --user flag \
         --rlimit nofile=1024:4096 --rlimit core=unlimited --init /sbin/init --cloud-init {seed} --cpu-quota 50% \
         --device 0000:01:00.0 -- /bin/server --verbose"
    );
    volar(&gateway, &arguments).assert().success();
    let create = gateway.kept().create.clone();
    assert_eq!(create["cpu_cores"], 2);
    assert_eq!(
        create["secrets"],
        json!([{"name": "token", "value_base64": "czNjcmV0Cg=="}])
    );
    let expected = json!({
        "user": "flag", "workdir": "/file", "env": {"A": "flag", "B": "file"}, "restart": "on-failure",
        "rlimits": {"nofile": {"soft": 1024, "hard": 4096}, "core": {}},
        "secrets": [{"name": "token", "env": "TOKEN"}, {"name": "db", "env": "DB"}],
        "root_disk": {"size_mb": 2048},
        "volumes": [
            {"name": "data", "target": "/data", "size_mb": 1024},
            {"name": "www", "target": "/www", "host_path": "/srv/www", "read_only": true},
        ],
        "init": "/sbin/init", "cloud_init": {"user_data": {"content": "#cloud-config\n"}},
        "limits": {"cpu_quota_percent": 50}, "devices": {"pci": ["0000:01:00.0"]},
        "health_check": {"type": "http", "endpoint": "/up", "interval_ms": 5000, "retries": 2},
        "entrypoint": ["/bin/server", "--verbose"],
    });
    assert_eq!(create["config"], expected);
    // What the API reads it as.
    let config: volant_spec::vm_config::VmConfig = serde_json::from_value(expected).unwrap();
    assert_eq!(config.cpu_cores, None);
}

#[test]
fn create_refuses_what_cannot_be() {
    let gateway = FakeGateway::start();
    for (arguments, expected) in [
        ("--health-cmd a --health-tcp 80", "cannot be used with"),
        ("--health-interval 5s", "required"),
        ("--disk 0", "no size"),
        ("--restart sometimes", "sometimes"),
        ("--secret a/b=c", "secret's name"),
        ("--secret a=- --secret b=-", "for one of them alone"),
        ("--secret a=/nonexistent", "cannot read /nonexistent"),
        ("--cpu-quota 0", "it is not 1%"),
    ] {
        let output = volar(
            &gateway,
            &format!("vms create web --plugin caddy {arguments}"),
        )
        .write_stdin("")
        .assert()
        .failure()
        .stderr(contains(expected));
        drop(output);
    }
    assert!(gateway.kept().create.is_null());
}

#[test]
fn a_configuration_is_changed_by_keys_or_as_a_whole() {
    let (gateway, folder) = (FakeGateway::with(&["web"]), tempfile::tempdir().unwrap());
    gateway.kept().vms.get_mut("web").unwrap()["restart_required"] = json!(true);
    volar(
        &gateway,
        "vms config set web env.A=1 limits.cpu_quota_percent=50 user=",
    )
    .assert()
    .success()
    .stdout("VM web has configuration 4; it holds from the next start: volar vms restart web\n");
    let patch = json!({"env": {"A": "1"}, "limits": {"cpu_quota_percent": 50}, "user": null});
    assert_eq!(gateway.kept().config, json!({"patch": patch}));
    let file = folder.path().join("c.toml");
    fs::write(&file, "cpu_cores = 2\n").unwrap();
    volar(&gateway, "vms config set web --if-version 3 --file")
        .arg(&file)
        .assert()
        .success();
    assert_eq!(gateway.kept().config, json!({"put": {"cpu_cores": 2}}));
    volar(&gateway, "vms config set web --file - -q")
        .write_stdin("{\"memory_mb\": 512}")
        .assert()
        .success()
        .stdout("");
    assert_eq!(gateway.kept().config, json!({"put": {"memory_mb": 512}}));
    volar(&gateway, "vms config set web user=a --if-version 2")
        .assert()
        .code(4)
        .stderr(
            contains("the newest configuration is 3")
                .and(contains("hint: somebody else changed it")),
        );
    for (arguments, code) in [
        ("vms config set web", 2),
        ("vms config set web a", 2),
        ("vms config set none a=b", 3),
        ("vms config get none", 3),
        ("vms config rollback web 9", 3),
    ] {
        volar(&gateway, arguments).assert().code(code);
    }
    volar(&gateway, "vms config rollback web 1")
        .assert()
        .success();
    let history = stdout(&mut volar(&gateway, "vms config history web"));
    assert!(
        history.lines().nth(1).unwrap().starts_with("2 "),
        "{history}"
    );
}

#[test]
fn a_configuration_is_edited_without_overwriting_others() {
    let (gateway, folder) = (FakeGateway::with(&["web"]), tempfile::tempdir().unwrap());
    gateway.kept().config = json!({"user": "a"});
    let shown = stdout(&mut volar(&gateway, "vms config get web"));
    assert_eq!(
        serde_json::from_str::<Value>(&shown).unwrap(),
        json!({"user": "a"})
    );
    let shown = stdout(&mut volar(&gateway, "vms config get web --effective"));
    assert!(shown.contains("cpu_cores"), "{shown}");
    let editor = folder.path().join("editor");
    fs::write(&editor, "#!/bin/sh\nsed -i s/\\\"a\\\"/\\\"b\\\"/ \"$1\"\n").unwrap();
    let with = |editor: &str| {
        let mut command = volar(&gateway, "vms config edit web");
        command.env_remove("VISUAL").env("EDITOR", editor);
        command
    };
    with(&format!("sh {}", editor.display())).assert().success();
    assert_eq!(gateway.kept().config, json!({"put": {"user": "b"}}));
    with("true")
        .assert()
        .success()
        .stdout(contains("as it was"));
    with("false")
        .assert()
        .code(2)
        .stderr(contains("nothing was changed"));
}

#[test]
fn secrets_are_kept_byte_for_byte_and_shown_nowhere() {
    let gateway = FakeGateway::with(&["web"]);
    gateway.kept().vms.get_mut("web").unwrap()["secrets"] = json!(["a", "b"]);
    volar(&gateway, "vms secret set web token")
        .write_stdin(b"\x00\xffs3cret\n".to_vec())
        .assert()
        .success()
        .stdout(contains("has the secret token"));
    assert_eq!(gateway.kept().secrets["token"], b"\x00\xffs3cret\n");
    volar(&gateway, "vms secret set web token")
        .write_stdin(vec![0; 128 * 1024 + 1])
        .assert()
        .code(2)
        .stderr(contains("has more than 131072 bytes"));
    volar(&gateway, "vms secret list web")
        .assert()
        .success()
        .stdout("a\nb\n");
    volar(&gateway, "vms secret remove web token")
        .assert()
        .success();
    volar(&gateway, "vms secret remove web token")
        .assert()
        .code(3);
}

#[test]
fn scaling_tells_how_it_was_applied() {
    let gateway = FakeGateway::with(&["web"]);
    volar(&gateway, "vms scale web --cpu 4")
        .assert()
        .success()
        .stdout(contains("changed with its next start").and(contains("(QEMU cannot")));
    volar(&gateway, "vms scale web --cpu 4 --memory 1024 --restart")
        .assert()
        .success()
        .stdout("VM web was restarted with 4 CPUs and 1024 MiB\n");
    let asked = json!({"restart": true, "cpu_cores": 4, "memory_mb": 1024});
    assert_eq!(gateway.kept().config, asked);
    volar(&gateway, "vms scale web").assert().code(2);
}

#[test]
fn a_vm_is_paused_and_goes_on() {
    let gateway = FakeGateway::with(&["web"]);
    volar(&gateway, "vms pause web")
        .assert()
        .success()
        .stdout("VM web is paused\n");
    let list = stdout(&mut volar(&gateway, "vms list"));
    assert!(list.contains("paused"), "{list}");
    volar(&gateway, "vms resume web")
        .assert()
        .success()
        .stdout("VM web is running at 192.168.127.2\n");
    volar(&gateway, "vms reload web").assert().success();
    let mut kept = gateway.kept();
    let vm = kept.vms.get_mut("web").unwrap();
    for (key, value) in [
        ("health", json!("unhealthy")),
        ("restart_required", json!(true)),
        ("config_version", json!(4)),
        ("running_config_version", json!(3)),
        ("reboots", json!(2)),
        ("ended", json!("workload-exited")),
        ("exit_code", json!(7)),
    ] {
        vm[key] = value;
    }
    drop(kept);
    let shown = stdout(&mut volar(&gateway, "vms get web"));
    for expected in [
        "running (unhealthy)*",
        "4, and 3 runs (restart required)",
        "2 of the guest",
        "workload-exited (exit code 7)",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
}
