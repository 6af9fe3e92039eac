//! Plugins enabled, verified and searched, leftovers removed, trusted keys told.

use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::Value;

use crate::{fake::FakeGateway, plugin::Plugin, stdout, volar};

/// Two versions of caddy, and a plugin from afar.
fn with_plugins() -> (FakeGateway, Plugin) {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    plugin.sign();
    plugin.install(&gateway).assert().success();
    let older = std::fs::read_to_string(plugin.manifest()).unwrap();
    std::fs::write(plugin.manifest(), older.replace("2.6.2", "2.6.1")).unwrap();
    plugin.install(&gateway).assert().success();
    volar(&gateway, "plugins install remote").assert().success();
    (gateway, plugin)
}

fn json(gateway: &FakeGateway, arguments: &str) -> Value {
    let text = stdout(&mut volar(gateway, &format!("{arguments} -o json")));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn versions_are_named_where_a_plugin_has_several() {
    let (gateway, _plugin) = with_plugins();
    assert_eq!(
        stdout(&mut volar(&gateway, "plugins ls -q")),
        "caddy@2.6.1\ncaddy@2.6.2\nremote\n"
    );
    volar(&gateway, "plugins remove caddy none")
        .assert()
        .code(4)
        .stderr(
            contains("caddy@2.6.1, caddy@2.6.2 are installed")
                .and(contains("hint: name one as NAME@VERSION"))
                .and(contains("there is no plugin none")),
        );
    volar(&gateway, "plugins rm caddy@2.6.1")
        .assert()
        .success()
        .stdout("plugin caddy@2.6.1 is removed\n");
    volar(&gateway, "plugins remove caddy remote --all")
        .assert()
        .success()
        .stdout("plugin caddy is removed\nplugin remote is removed\n");
    assert!(gateway.kept().plugins.is_empty());
}

#[test]
fn plugins_are_disabled_and_enabled() {
    let (gateway, _plugin) = with_plugins();
    volar(&gateway, "plugins disable caddy none remote")
        .assert()
        .code(3)
        .stdout(
            "plugin caddy 2.6.1 is disabled\nplugin caddy 2.6.2 is disabled\nplugin remote 1 is disabled\n",
        )
        .stderr(contains("there is no plugin none"));
    let table = stdout(&mut volar(&gateway, "plugins list"));
    assert!(table.contains("no"), "{table}");
    let enabled = json(&gateway, "plugins enable caddy@2.6.2");
    assert_eq!(
        (&enabled[0]["enabled"], enabled.as_array().unwrap().len()),
        (&true.into(), 1)
    );
    assert_eq!(gateway.kept().plugins["caddy@2.6.1"]["enabled"], false);
    volar(&gateway, "plugins enable remote -q")
        .assert()
        .success()
        .stdout("");
}

#[test]
fn a_damaged_plugin_is_told_and_is_a_failure() {
    let (gateway, _plugin) = with_plugins();
    let table = stdout(&mut volar(&gateway, "plugins verify"));
    assert_eq!(table.lines().count(), 7, "{table}");
    assert!(table.starts_with("PLUGIN "), "{table}");
    volar(&gateway, "plugins verify -q")
        .assert()
        .success()
        .stdout("");
    gateway.kept().damaged = true;
    volar(&gateway, "plugins verify caddy@2.6.2")
        .assert()
        .code(1)
        .stdout(contains("signed by acme").and(contains("WRONG   its bytes were changed")))
        .stderr(contains(
            "error: 1 of 2 parts are not as they should be\nhint: install the plugin again",
        ));
    let mut verify = volar(&gateway, "plugins verify caddy@2.6.2 -o json");
    let output = verify.assert().code(1).get_output().stdout.clone();
    let parts: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(parts[1]["subject"], "initramfs");
    volar(&gateway, "plugins verify -q remote")
        .assert()
        .code(1)
        .stdout(contains("initramfs").and(contains("signature").not()));
    volar(&gateway, "plugins verify none").assert().code(3);
}

#[test]
fn what_nothing_refers_to_is_removed() {
    let (gateway, _plugin) = with_plugins();
    volar(&gateway, "plugins gc")
        .assert()
        .success()
        .stdout("1 artifact is removed, 1.0 MB are free again\n");
    volar(&gateway, "plugins gc")
        .assert()
        .success()
        .stdout("there was nothing to remove\n");
    assert_eq!(json(&gateway, "plugins gc")["artifacts"], 0);
}

#[test]
fn indexes_are_searched_and_those_that_are_away_are_told() {
    let gateway = FakeGateway::start();
    let away = "warning: https://b.example/index.json: no answer\n";
    let mut search = volar(&gateway, "plugins search");
    search
        .assert()
        .success()
        .stderr(away)
        .stdout(contains("4, 3, 2, and 1 more").and(contains("https://a.example/index.json")));
    volar(&gateway, "plugins search web -q")
        .assert()
        .success()
        .stdout("caddy\n");
    assert_eq!(
        json(&gateway, "plugins search web")["plugins"][0]["installed"][0],
        "3"
    );
    // Of any characters.
    volar(&gateway, "plugins search &nothing")
        .assert()
        .success()
        .stdout(contains("no configured index has a plugin with '&nothing'"));
}

#[test]
fn the_policy_and_the_keys_are_told() {
    let gateway = FakeGateway::start();
    volar(&gateway, "plugins trust list")
        .assert()
        .success()
        .stdout(
            contains("signatures = \"require\": a plugin must be signed with one of these keys\n")
                .and(contains("E7620F1842B4E81F   caddy, acme-*   of our builds")),
        )
        .stderr("warning: bad.pub: it is no text\n");
    assert_eq!(
        stdout(&mut volar(&gateway, "plugins trust ls -q")),
        "acme\n"
    );
    assert_eq!(json(&gateway, "plugins trust list")["policy"], "require");
    gateway.kept().policy = "off".to_owned();
    volar(&gateway, "plugins trust list -q")
        .assert()
        .success()
        .stderr(contains(
            "warning: signatures of plugins are not checked here",
        ));
}

#[test]
fn an_unsigned_plugin_that_goes_on_under_require_is_told() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    let policy = |policy: &str| gateway.kept().policy = policy.to_owned();
    policy("warn");
    plugin.install(&gateway).assert().success();
    let mut list = volar(&gateway, "plugins list");
    let create = |name: &str| volar(&gateway, &format!("vms create {name} --plugin caddy"));
    list.assert().success().stderr("");
    create("a").assert().success().stderr("");
    policy("require");
    let warned = || {
        contains("warning: no trusted signature, though one is required")
            .and(contains(": caddy@2.6.2; VMs are still made of"))
    };
    list.assert().success().stderr(warned());
    let mut json = volar(&gateway, "plugins list -o json");
    json.assert().success().stderr(warned());
    create("b")
        .assert()
        .success()
        .stdout("VM b is running at 192.168.127.2\n")
        .stderr(warned());
    // What is disabled makes no VMs, and what is signed is fine.
    volar(&gateway, "plugins disable caddy").assert().success();
    list.assert().success().stderr("");
    plugin.sign();
    plugin.install(&gateway).assert().success();
    create("c").assert().success().stderr("");
}
