//! VMs created, started, stopped and deleted: the order of the steps, and what is left when one fails.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::Semaphore};

use crate::{
    Setup, eventually,
    systemd::{Start, Unit},
};

const WEB: &str = r#"{"name":"web","plugin":"caddy"}"#;
const UNIT: &str = "volant-vm@web.service";

#[tokio::test]
async fn a_created_vm_is_answered_once_it_runs() {
    let setup = Setup::new().await;
    let answer = setup.post("/api/v1/vms", WEB).await;
    assert_eq!(answer.status.as_u16(), 201, "{answer:?}");
    let expected = serde_json::json!({
        "name": "web", "uuid": "uuid-1", "plugin": "caddy", "plugin_version": "1.0",
        "cpu_cores": 1, "memory_mb": 256, "created_at": "2026-11-20T10:00:00Z",
        "vmm": {"requested": "auto", "used": "qemu", "reason": null, "pid": 4711},
        "phase": "running", "status": "running at 192.168.127.2",
        "address": "192.168.127.2", "mac": "52:54:00:00:00:01", "cid": 3,
        "unit": UNIT, "enabled": false, "agent_version": null,
        "memory_total_kib": null, "memory_available_kib": null, "agent_resident_kib": 3072,
        "ready_since": "2023-11-14T22:13:20.123Z", "deleting": false, "restarts": 0,
        "paused": false, "health": null, "ended": null, "exit_code": null,
        "config_version": 1, "running_config_version": 1, "restart_required": false,
        "reboots": 0, "workload_restarts": 0, "generation": 1, "secrets": [],
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(setup.get("/api/v1/vms/web").await.json(), expected);
    assert_eq!(
        setup.get("/api/v1/vms").await.json(),
        serde_json::json!([expected])
    );
    assert_eq!(setup.systemd.calls(), [format!("start {UNIT}")]);
}

#[tokio::test]
async fn a_vm_is_started_stopped_and_restarted_and_each_can_be_asked_for_twice() {
    let setup = Setup::new().await;
    let body = r#"{"name":"web","plugin":"caddy","start":false}"#;
    let answer = setup.post("/api/v1/vms", body).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["phase"]),
        (201, &"stopped".into())
    );
    // The address is its own from the first day on, and none of a supervisor's words are made up.
    assert_eq!(answer.json()["address"], "192.168.127.2");
    assert_eq!(answer.json()["vmm"]["used"], serde_json::Value::Null);
    for (act, phase) in [
        ("start", "running"),
        ("start", "running"),
        ("restart", "running"),
        ("stop", "stopped"),
        ("stop", "stopped"),
    ] {
        let answer = setup.post(&format!("/api/v1/vms/web/{act}"), "").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["phase"]),
            (200, &phase.into()),
            "{act}"
        );
    }
    let vm = setup.post("/api/v1/vms/web/enable", "").await.json();
    assert_eq!(vm["enabled"], true);
    let vm = setup.post("/api/v1/vms/web/disable", "").await.json();
    assert_eq!(vm["enabled"], false);
}

#[tokio::test]
async fn a_name_that_is_taken_is_a_conflict_and_the_vm_stays() {
    let setup = Setup::new().await;
    setup.post("/api/v1/vms", WEB).await;
    let answer = setup.post("/api/v1/vms", WEB).await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (409, "vm-exists")
    );
    assert_eq!(
        setup.get("/api/v1/vms/web").await.json()["phase"],
        "running"
    );
}

#[tokio::test]
async fn a_vm_that_does_not_start_leaves_no_trace_of_its_creation() {
    let setup = Setup::new().await;
    setup
        .systemd
        .next_start(UNIT, Start::Fails("no agent called within 60 s"));
    let body = r#"{"name":"web","plugin":"caddy","enable":true}"#;
    let answer = setup.post("/api/v1/vms", body).await;
    let (kind, detail) = answer.problem();
    assert_eq!(
        (answer.status.as_u16(), kind.as_str()),
        (502, "start-failed")
    );
    assert!(detail.contains("no agent called within 60 s"), "{detail}");
    assert!(
        detail.ends_with("see: journalctl -u volant-vm@web"),
        "{detail}"
    );
    assert!(setup.world.lock().vms.is_empty());
    assert!(setup.world.lock().leases.is_empty());
    let unit = setup.systemd.unit(UNIT).unwrap();
    assert_eq!((unit.active, unit.file), ("inactive", "disabled"));
}

#[tokio::test]
async fn a_vm_that_does_not_start_again_stays_and_can_be_tried_again() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    setup
        .systemd
        .next_start(UNIT, Start::Fails("the kernel is no kernel"));
    let answer = setup.post("/api/v1/vms/web/start", "").await;
    let (kind, detail) = answer.problem();
    assert_eq!(
        (answer.status.as_u16(), kind.as_str()),
        (502, "start-failed")
    );
    assert!(detail.contains("the kernel is no kernel"), "{detail}");
    let vm = setup.get("/api/v1/vms/web").await.json();
    assert_eq!(vm["phase"], "failed");
    let expected = "the kernel is no kernel (the supervisor exited with code 1)";
    assert_eq!(vm["status"], expected);
    assert_eq!(
        setup
            .post("/api/v1/vms/web/start", "")
            .await
            .status
            .as_u16(),
        200
    );
    let reset = format!("reset-failed {UNIT}");
    assert!(
        setup.systemd.calls().contains(&reset),
        "{:?}",
        setup.systemd.calls()
    );
}

#[tokio::test]
async fn who_asks_by_name_is_not_held_to_how_often_a_vm_was_started() {
    let setup = Setup::new().await;
    setup.post("/api/v1/vms", WEB).await;
    for act in ["restart", "start"].repeat(6) {
        let answer = setup.post(&format!("/api/v1/vms/web/{act}"), "").await;
        assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    }
}

#[tokio::test]
async fn a_start_that_something_else_replaces_is_waited_for() {
    for (left, end, status) in [
        ("activating", "active", 201),
        ("deactivating", "failed", 502),
    ] {
        let setup = Setup::new().await;
        setup.systemd.next_start(UNIT, Start::Canceled(left));
        let create = setup.post("/api/v1/vms", WEB);
        let settle = async {
            // The first look is over when the second one is asked for.
            eventually("it is looked at twice", || setup.systemd.loads() >= 2).await;
            assert_eq!(setup.world.calls(), ["CreateVm web"]);
            setup.systemd.set(UNIT, Unit::new(end));
        };
        let (answer, ()) = tokio::join!(create, settle);
        assert_eq!(answer.status.as_u16(), status, "{answer:?}");
        let is_there = setup.world.lock().vms.contains_key("web");
        assert_eq!(is_there, end == "active");
    }
}

#[tokio::test]
async fn a_new_vm_that_something_else_stops_stays() {
    let setup = Setup::new().await;
    setup.systemd.next_start(UNIT, Start::Canceled("inactive"));
    let answer = setup.post("/api/v1/vms", WEB).await;
    let (kind, detail) = answer.problem();
    assert_eq!(kind, "start-failed");
    assert!(
        detail.contains("something else stopped it; it stays defined"),
        "{detail}"
    );
    assert_eq!(
        setup.get("/api/v1/vms/web").await.json()["phase"],
        "stopped"
    );
}

#[tokio::test]
async fn a_deleted_vm_is_marked_stopped_disabled_released_and_removed_in_that_order() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let running = Unit {
        file: "enabled",
        ..Unit::new("active")
    };
    setup.systemd.set(UNIT, running);
    assert_eq!(setup.delete("/api/v1/vms/web").await.status.as_u16(), 204);
    assert_eq!(
        setup.world.calls(),
        ["DeleteVm web", "ReleaseLease web", "PurgeVm web"]
    );
    let expected = [
        format!("stop {UNIT}"),
        format!("reset-failed {UNIT}"),
        "start volant-vm-disable@web.service".to_owned(),
    ];
    assert_eq!(setup.systemd.calls(), expected);
    assert_eq!(
        setup.delete("/api/v1/vms/web").await.problem().0,
        "no-such-vm"
    );
}

#[tokio::test]
async fn two_deletes_at_once_are_one_deletion() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let (one, two) = tokio::join!(
        setup.delete("/api/v1/vms/web"),
        setup.delete("/api/v1/vms/web")
    );
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (204, 204));
    let marks = setup
        .world
        .calls()
        .iter()
        .filter(|call| *call == "DeleteVm web")
        .count();
    assert_eq!(marks, 1);
}

#[tokio::test]
async fn a_vm_that_is_being_deleted_cannot_be_started() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", true);
    for act in ["start", "restart", "enable"] {
        let answer = setup.post(&format!("/api/v1/vms/web/{act}"), "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().0.as_str()),
            (409, "being-deleted")
        );
    }
    assert_eq!(
        setup.get("/api/v1/vms/web").await.json()["phase"],
        "deleting"
    );
    assert_eq!(setup.systemd.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_start_that_a_deletion_overtakes_says_so_and_leaves_no_failed_unit() {
    for (gone, expected) in [(false, "being-deleted"), (true, "no-such-vm")] {
        let setup = Setup::new().await;
        setup.world.lock().vm("web", false);
        let gate = Arc::new(Semaphore::new(0));
        setup
            .systemd
            .next_start(UNIT, Start::Waits(Arc::clone(&gate)));
        setup
            .systemd
            .next_start(UNIT, Start::Fails("being deleted"));
        let start = setup.post("/api/v1/vms/web/start", "");
        let delete = async {
            eventually("the start is asked for", || {
                !setup.systemd.calls().is_empty()
            })
            .await;
            match gone {
                false => setup.world.lock().vms.get_mut("web").unwrap().deleting = true,
                true => setup.world.lock().vms.clear(),
            }
            gate.add_permits(1);
        };
        let (answer, ()) = tokio::join!(start, delete);
        assert_eq!(answer.problem().0, expected);
        // Where the deletion is still under way, it is the deletion that tidies up.
        let left = if gone { "inactive" } else { "failed" };
        assert_eq!(setup.systemd.unit(UNIT).unwrap().active, left);
    }
}

#[tokio::test]
async fn a_failed_creation_does_not_take_back_a_vm_that_somebody_made_meanwhile() {
    let setup = Setup::new().await;
    let gate = Arc::new(Semaphore::new(0));
    setup
        .systemd
        .next_start(UNIT, Start::Waits(Arc::clone(&gate)));
    setup.systemd.next_start(UNIT, Start::Fails("no"));
    let create = setup.post("/api/v1/vms", WEB);
    let replace = async {
        eventually("the start is asked for", || {
            !setup.systemd.calls().is_empty()
        })
        .await;
        setup.world.lock().vm("web", false);
        gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(create, replace);
    assert_eq!(answer.problem().0, "start-failed");
    assert_eq!(setup.world.lock().vms["web"].uuid, "uuid-2");
}

#[tokio::test]
async fn a_creation_goes_on_when_its_client_goes_away() {
    let setup = Setup::new().await;
    let gate = Arc::new(Semaphore::new(0));
    setup
        .systemd
        .next_start(UNIT, Start::Waits(Arc::clone(&gate)));
    let stream = UnixStream::connect(&setup.socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("/api/v1/vms").header("content-type", "application/json");
    let answer = tokio::spawn(async move {
        let _ = sender
            .send_request(request.body(Body::from(WEB)).unwrap())
            .await;
    });
    eventually("the start is asked for", || {
        !setup.systemd.calls().is_empty()
    })
    .await;
    connection.abort();
    answer.abort();

    // The service is not idle while the start is under way, though nobody is connected.
    let quiet = setup.idle.wait(Duration::ZERO);
    let waited = tokio::time::timeout(Duration::from_millis(200), quiet).await;
    assert!(waited.is_err());
    gate.add_permits(1);
    let idle = setup.idle.wait(Duration::ZERO);
    tokio::time::timeout(Duration::from_secs(10), idle)
        .await
        .unwrap();
    assert_eq!(
        setup.get("/api/v1/vms/web").await.json()["phase"],
        "running"
    );
}

#[tokio::test]
async fn a_failed_creation_is_taken_back_when_its_client_is_gone() {
    let setup = Setup::new().await;
    setup.systemd.next_start(UNIT, Start::Fails("no"));
    let mut stream = UnixStream::connect(&setup.socket).await.unwrap();
    let head = "POST /api/v1/vms HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{WEB}", WEB.len());
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    eventually("the VM is defined", || {
        setup.world.calls().contains(&"CreateVm web".to_owned())
    })
    .await;
    drop(stream);
    eventually("the VM is removed", || setup.world.lock().vms.is_empty()).await;
}

#[tokio::test]
async fn deletions_that_were_cut_off_are_finished() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", true);
    setup.world.lock().vm("db", false);
    setup.systemd.set(UNIT, Unit::new("active"));
    setup.gateway.finish_deletions();
    eventually("the marked VM is removed", || {
        !setup.world.lock().vms.contains_key("web")
    })
    .await;
    assert!(setup.world.lock().vms.contains_key("db"));
    assert!(!setup.world.lock().leases.contains_key("web"));
    assert_eq!(setup.systemd.unit(UNIT).unwrap().active, "inactive");
}

#[tokio::test]
async fn deletions_are_tried_again_when_registryd_is_not_up_to_it_yet() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", true);
    setup.world.lock().fails = true;
    setup.gateway.finish_deletions();
    eventually("the first try failed", || !setup.world.calls().is_empty()).await;
    setup.world.lock().fails = false;
    eventually("the marked VM is removed", || {
        setup.world.lock().vms.is_empty()
    })
    .await;
}

#[tokio::test]
async fn what_was_set_of_a_deleted_vms_unit_is_forgotten_where_something_was() {
    let setup = Setup::new().await;
    for name in ["web", "db"] {
        setup.world.lock().vm(name, false);
    }
    let control = setup.dir.path().join("system.control");
    std::fs::create_dir_all(control.join("volant-vm@web.service.d")).unwrap();
    for name in ["web", "db"] {
        let answer = setup.delete(&format!("/api/v1/vms/{name}")).await;
        assert_eq!(answer.status.as_u16(), 204);
    }
    let calls = setup.systemd.calls();
    let forgotten: Vec<_> = calls
        .iter()
        .filter(|call| call.contains("forget"))
        .collect();
    assert_eq!(forgotten, ["start volant-vm-forget@web.service"]);
}
