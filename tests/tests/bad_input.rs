//! Bad input: each a clear error, and no trace of it left.

use anyhow::{Result, ensure};
use volant_tests::Site;

#[test]
fn bad_requests_are_refused_and_leave_no_trace() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("warm", "hello")?;
    host.sh("volar vms delete warm")?;
    let before = site.traces()?;
    let long = "a".repeat(64);
    let curl = |body: &str| {
        format!(
            "curl --silent --unix-socket /run/volant/api.sock -H 'Content-Type: application/json' -d '{body}' \
             http://localhost/api/v1/vms | tee /dev/stderr | jq --exit-status '.status < 400' > /dev/null"
        )
    };
    let cases = [
        ("volar vms create a/b --plugin hello".to_owned(), "'/'"),
        ("volar vms create .. --plugin hello".to_owned(), "'.'"),
        (format!("volar vms create {long} --plugin hello"), "64"),
        (curl(r#"{"name":"a/b","plugin":"hello"}"#), "'/'"),
        (curl(r#"{"name":"..","plugin":"hello"}"#), "'.'"),
        (
            curl(&format!(r#"{{"name":"{long}","plugin":"hello"}}"#)),
            "64",
        ),
        (
            curl(r#"{"name":"a","plugin":"hello","memory_mb":0}"#),
            "0 MiB",
        ),
        (
            curl(r#"{"name":"a","plugin":"hello","colour":"red"}"#),
            "colour",
        ),
        (
            "volar vms create a --plugin hello --memory 0".to_owned(),
            "0",
        ),
        ("volar vms create a --plugin hello --cpu 0".to_owned(), "0"),
        ("volar vms create a --plugin nginx".to_owned(), "nginx"),
        (
            "volar vms create a --plugin hello --vmm xen".to_owned(),
            "xen",
        ),
        ("volar vms start nobody".to_owned(), "nobody"),
        ("volar vms delete nobody".to_owned(), "nobody"),
        ("volar plugins remove nginx".to_owned(), "nginx"),
        (
            "volar plugins install --manifest /nowhere.json".to_owned(),
            "/nowhere.json",
        ),
        (
            "volar plugins install --manifest http://127.0.0.1:1/x.json".to_owned(),
            "127.0.0.1:1",
        ),
    ];
    for (command, expected) in cases {
        let text = site.refused(&command)?;
        ensure!(
            text.contains(expected),
            "{command}: says no '{expected}':\n{text}"
        );
    }
    ensure!(
        before == site.traces()?,
        "before:\n{before}\nafter:\n{}",
        site.traces()?
    );

    let unknown = site.refused(
        "systemctl start volant-vm@nobody; journalctl --no-pager -u volant-vm@nobody; false",
    )?;
    ensure!(
        unknown.contains("nobody") && unknown.contains("volar vms list"),
        "{unknown}"
    );
    Ok(())
}

#[test]
fn bad_manifests_are_refused() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.take_unsigned()?;
    site.build_plugin("odd", "exec sleep 1000000", "")?;
    let manifest = "/root/odd/odd.manifest.json";
    let before = host.sh("find /var/lib/volant/registry/blobs | sort; volar plugins list")?;
    let edit = |filter: &str| {
        format!(
            "jq '{filter}' {manifest} > /root/odd/bad.json && volar plugins install --manifest /root/odd/bad.json"
        )
    };
    let wrong = "0".repeat(64);
    let cases = [
        (edit(&format!(r#".initramfs.checksum = "sha256:{wrong}""#)), "sha256:000"),
        (edit(r#".colour = "red""#), "colour"),
        (edit(r#".name = "a/b""#), "'/'"),
        (edit(r#"del(.workload)"#), "workload"),
        (edit(r#".initramfs.url = "gone.cpio""#), "gone.cpio"),
        (edit(r#".initramfs.url = "../../etc/shadow""#), "the manifest says"),
        ("echo '{' > /root/odd/bad.json && volar plugins install --manifest /root/odd/bad.json".to_owned(), "line 2"),
        (
            "(printf '{\"name\": \"'; head -c 1000000000 /dev/zero | tr '\\0' a; printf '\"}') > /tmp/huge.json; \
             volar plugins install --manifest /tmp/huge.json; status=$?; rm /tmp/huge.json; exit $status"
                .to_owned(),
            "1048576",
        ),
    ];
    for (command, expected) in cases {
        let text = site.refused(&command)?;
        ensure!(
            text.contains(expected),
            "{command}: says no '{expected}':\n{text}"
        );
    }
    let after = host.sh("find /var/lib/volant/registry/blobs | sort; volar plugins list")?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

#[test]
fn what_cannot_boot_says_why_and_leaves_nothing() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.take_unsigned()?;
    site.set("boot_timeout_sec", "10")?;
    site.create("warm", "hello")?;
    host.sh("volar vms delete warm")?;
    // An initramfs without kestrel: its /init never calls.
    host.sh(
        "mkdir -p /root/mute/tree/bin && cd /root/mute && cp /bin/busybox tree/bin/ && \
         printf '#!/bin/busybox sh\\nwhile true; do /bin/busybox sleep 1; done\\n' > tree/init && chmod +x tree/init && \
         (cd tree && find . | cpio --quiet -o -H newc | gzip) > mute.cpio.gz && \
         jq \".name = \\\"mute\\\" | .initramfs.url = \\\"mute.cpio.gz\\\" | del(.initramfs.size) | \
         .initramfs.checksum = \\\"sha256:$(sha256sum mute.cpio.gz | cut -d' ' -f1)\\\"\" \
         /root/hello/hello.manifest.json > mute.json && volar plugins install --manifest mute.json",
    )?;
    // A workload that is not there.
    host.sh(
        "cd /root/hello && jq '.name = \"absent\" | .workload.entrypoint = [\"/no/such/program\"]' hello.manifest.json > absent.json && \
         volar plugins install --manifest absent.json",
    )?;
    let before = site.traces()?;
    let mute = site.refused("volar vms create a --plugin mute --memory 128")?;
    ensure!(mute.contains("no agent called within 10 s"), "{mute}");
    let absent = site.refused("volar vms create a --plugin absent --memory 128")?;
    ensure!(
        absent.contains("/no/such/program"),
        "the cause reaches the user: {absent}"
    );

    host.sh("mv /usr/lib/volant/kernel/vmlinux /tmp/kept && head -c 100000 /dev/urandom > /usr/lib/volant/kernel/vmlinux")?;
    let kernel = site.refused("volar vms create a --plugin hello --memory 128")?;
    ensure!(
        kernel.contains("/usr/lib/volant/kernel/vmlinux") && kernel.contains("kernel"),
        "{kernel}"
    );
    host.sh("mv /tmp/kept /usr/lib/volant/kernel/vmlinux")?;

    host.sh("mv /usr/bin/qemu-system-x86_64 /usr/bin/qemu-away")?;
    let qemu = site.refused("volar vms create a --plugin hello --memory 128")?;
    ensure!(
        qemu.contains("qemu-system-x86"),
        "it says what to install: {qemu}"
    );
    host.sh("mv /usr/bin/qemu-away /usr/bin/qemu-system-x86_64")?;
    let ch =
        site.refused("volar vms create a --plugin hello --memory 128 --vmm cloud-hypervisor")?;
    ensure!(ch.contains("cloud-hypervisor"), "{ch}");
    ensure!(
        before == site.traces()?,
        "before:\n{before}\nafter:\n{}",
        site.traces()?
    );
    site.create("good", "hello")?;
    Ok(())
}

#[test]
fn without_dev_kvm_a_vm_runs_emulated_and_says_so() -> Result<()> {
    let site = Site::new()?;
    site.host
        .sh("umount /dev/kvm 2>/dev/null; rm -f /dev/kvm")?;
    site.create("web", "hello")?;
    let vm = site.vm("web")?;
    ensure!(vm["vmm"]["used"] == "qemu", "{vm}");
    ensure!(
        vm["vmm"]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("emulat")),
        "{vm}"
    );
    Ok(())
}

#[test]
fn a_full_disk_is_named_and_nothing_is_half_there() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    host.sh("head -c 20000000 /dev/urandom > /root/ballast")?;
    site.build_plugin(
        "big",
        "exec sleep 1000000",
        "[[file_mappings]]\nsource = \"/root/ballast\"\ndest = \"/ballast\"",
    )?;
    host.sh(
        "systemctl stop volant-registryd.service && mkdir -p /mnt/small && mount -t tmpfs -o size=12m tmpfs /mnt/small && \
         cp -a /var/lib/volant/registry/. /mnt/small/ && mount --bind /mnt/small /var/lib/volant/registry && \
         chown volant-registry: /var/lib/volant/registry && chmod 700 /var/lib/volant/registry",
    )?;
    let before = host.sh("find /var/lib/volant/registry/blobs | sort; volar plugins list")?;
    let text = site.refused("volar plugins install --manifest /root/big/big.manifest.json")?;
    ensure!(text.to_lowercase().contains("no space"), "{text}");
    let after = host.sh("find /var/lib/volant/registry/blobs | sort; volar plugins list")?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}
