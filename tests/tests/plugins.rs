//! Plugins as others get them: built from an image, signed, published, found, installed, and what is refused.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use volant_tests::{Site, eventually, nginx};

const REGISTRY: &str = "127.0.0.1:5005";

/// Starts Debian's docker-registry on the host's loopback address, and pushes the image of nginx to it.
fn registry(site: &Site) -> Result<()> {
    let host = &site.host;
    let root = host.path().join("root/image");
    host.sh("mkdir -p /root/image /var/tmp/registry")?;
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(nginx::image()?.join("."))
        .arg(&root)
        .status()
        .context("cannot copy the image")?;
    ensure!(copied.success(), "cannot copy the image");
    host.sh(&format!(
        "printf 'version: 0.1\\nstorage:\\n  filesystem:\\n    rootdirectory: /var/tmp/registry\\nhttp:\\n  addr: {REGISTRY}\\n' \
         > /root/registry.yml && systemd-run --unit registry docker-registry serve /root/registry.yml"
    ))?;
    site.page(&format!("http://{REGISTRY}/v2/"))?;
    host.sh(&format!(
        "skopeo copy --quiet --dest-tls-verify=false oci:/root/image:{tag} docker://{REGISTRY}/library/nginx:{tag}",
        tag = nginx::TAG
    ))?;
    Ok(())
}

/// Builds and signs the plugin `nginx` in `/root/nginx`, from the registry.
fn build(site: &Site, version: &str, more: &str) -> Result<()> {
    site.host.sh(&format!(
        "mkdir -p /root/nginx && cd /root/nginx && cat > fledge.toml <<'END'\n[plugin]\nname = \"nginx\"\nversion = \"{version}\"\n\
         strategy = \"oci_rootfs\"\n\n[oci_source]\nimage = \"{REGISTRY}/library/nginx:{tag}\"\n{more}\nEND\n\
         fledge build && fledge sign nginx.manifest.json",
        tag = nginx::TAG
    ))?;
    Ok(())
}

#[test]
fn an_image_runs_as_its_own_user_from_a_disk_that_vms_share() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    registry(&site)?;
    build(&site, "1.22.1", "")?;
    let manifest = host.sh("cat /root/nginx/nginx.manifest.json")?;
    for expected in [
        "www-data",
        "SIGQUIT",
        "/var/log/nginx",
        "\"port\": 80",
        "squashfs",
    ] {
        ensure!(
            manifest.contains(expected),
            "no {expected} in the manifest: {manifest}"
        );
    }
    host.sh(&format!(
        "cd /root/nginx && fledge push oci://{REGISTRY}/plugins/nginx:1.22.1"
    ))?;
    host.sh(&format!("skopeo copy --quiet --src-tls-verify=false docker://{REGISTRY}/plugins/nginx:1.22.1 oci:/root/copy:1"))?;
    host.sh(&format!(
        "volar plugins install oci://{REGISTRY}/plugins/nginx:1.22.1"
    ))?;
    let shown = host.sh("volar plugins list")?;
    ensure!(
        shown.contains("nginx") && shown.contains("tests"),
        "{shown}"
    );

    for vm in ["one", "two"] {
        host.sh(&format!(
            "volar vms create {vm} --plugin nginx --memory 256"
        ))?;
        let address = site.address(vm)?;
        site.expect_page(&format!("http://{address}/"), "page of the image")?;
    }
    let journal = site.journal("one")?;
    ensure!(
        journal.contains("workload runs as www-data:www-data in /var/www, hello"),
        "{journal}"
    );
    // Both guests read the one file that is in the store.
    let disks = host.sh("find /var/lib/volant/registry/blobs -type f -size +10M | wc -l")?;
    ensure!(disks.trim() == "1", "{disks} large files in the store");
    host.sh("volar vms restart one")?;
    site.expect_page(
        &format!("http://{}/", site.address("one")?),
        "page of the image",
    )?;
    host.sh("volar vms delete one two")?;
    Ok(())
}

#[test]
fn every_format_and_kernel_boots() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    registry(&site)?;
    for (version, more) in [
        ("1.0", "[filesystem]\ntype = \"erofs\""),
        ("1.1", "[filesystem]\ntype = \"ext4\""),
    ] {
        build(&site, version, more)?;
        host.sh("volar plugins install --manifest /root/nginx/nginx.manifest.json")?;
        host.sh(&format!(
            "volar vms create web --plugin nginx@{version} --memory 256"
        ))?;
        site.expect_page(
            &format!("http://{}/", site.address("web")?),
            "page of the image",
        )?;
        host.sh("volar vms delete web")?;
    }
    host.sh("sed -i 's/^version = .*/version = \"1.2\"\\nkernel = \"bzimage\"/' /root/nginx/fledge.toml")?;
    host.sh("cd /root/nginx && fledge build && fledge sign nginx.manifest.json && volar plugins install --manifest nginx.manifest.json")?;
    host.sh("volar vms create web --plugin nginx --memory 256")?;
    site.expect_page(
        &format!("http://{}/", site.address("web")?),
        "page of the image",
    )?;
    ensure!(
        site.vm("web")?["plugin_version"] == "1.2",
        "the newest is taken"
    );
    Ok(())
}

#[test]
fn what_was_changed_after_it_was_signed_is_refused() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.build_plugin("signed", "exec sleep 1000000", "")?;
    host.sh("cp -r /root/signed /root/kept")?;
    let install = "volar plugins install --manifest /root/signed/signed.manifest.json";
    let cases = [
        (
            "sed -i 's/\"0.1.0\"/\"0.1.1\"/' signed.manifest.json",
            "changed",
        ),
        ("printf x >> signed.cpio.gz", "bytes"),
        (
            "printf x | dd of=signed.cpio.gz bs=1 seek=100 conv=notrunc status=none",
            "sha256",
        ),
        ("sed -i '4s/./A/' signed.manifest.json.minisig", "signature"),
        ("rm signed.manifest.json.minisig", "not signed"),
        (
            "fledge keygen --no-password -s /root/other.key -p /root/other.pub && \
             fledge sign -s /root/other.key signed.manifest.json",
            "trust add",
        ),
    ];
    for (change, expected) in cases {
        host.sh(&format!(
            "rm -rf /root/signed && cp -r /root/kept /root/signed && cd /root/signed && {change}"
        ))?;
        let text = site.refused(install)?;
        ensure!(
            text.contains(expected),
            "{change}: says no '{expected}':\n{text}"
        );
        ensure!(
            !host.sh("volar plugins list")?.contains("signed "),
            "{change}: it was installed"
        );
    }
    // A key may be for some names alone.
    host.sh("rm -rf /root/signed && cp -r /root/kept /root/signed && volar plugins trust add /root/other.pub --name other --plugins 'acme-*'")?;
    host.sh("cd /root/signed && fledge sign -s /root/other.key signed.manifest.json")?;
    let text = site.refused(install)?;
    ensure!(text.contains("acme-*"), "{text}");
    // The real minisign agrees with what fledge signed.
    host.sh(
        "cd /root/kept && minisign -Vm signed.manifest.json -p /root/.config/volant/signing.pub",
    )?;
    Ok(())
}

#[test]
fn an_older_version_is_not_replayed() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    for version in ["1.0", "2.0"] {
        site.build_plugin("aged", "exec sleep 1000000", "")?;
        host.sh(&format!(
            "cd /root/aged && sed -i 's/^name = .*/&\\nversion = \"{version}\"/' fledge.toml && fledge build && \
             fledge sign aged.manifest.json && cp -r /root/aged /root/aged-{version}"
        ))?;
    }
    host.sh("volar plugins install --manifest /root/aged-2.0/aged.manifest.json")?;
    let old = "volar plugins install --manifest /root/aged-1.0/aged.manifest.json";
    let text = site.refused(old)?;
    ensure!(
        text.contains("2.0") && text.contains("--allow-downgrade"),
        "{text}"
    );
    host.sh(&format!("{old} --allow-downgrade"))?;
    let listed = host.sh("volar plugins list")?;
    ensure!(listed.contains("1.0") && listed.contains("2.0"), "{listed}");
    site.create("a", "aged@1.0")?;
    site.create("b", "aged")?;
    ensure!(site.vm("a")?["plugin_version"] == "1.0" && site.vm("b")?["plugin_version"] == "2.0");
    host.sh("volar plugins disable aged@2.0")?;
    let text = site.refused("volar vms create c --plugin aged@2.0")?;
    ensure!(text.contains("disabled"), "{text}");
    let text = site.refused("volar plugins remove aged@1.0")?;
    ensure!(text.contains("'a'") || text.contains(" a"), "{text}");
    host.sh("volar vms delete a b && volar plugins remove aged --all")?;
    ensure!(!host.sh("volar plugins list")?.contains("aged"));
    Ok(())
}

#[test]
fn a_plugin_is_found_in_an_index_and_fetched_once() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.build_plugin("found", "exec sleep 1000000", "")?;
    host.sh(
        "mkdir -p /root/web/found && cp /root/found/found.* /root/web/found/ && cat > /root/web/index.json <<'END'\n\
         {\"schema_version\": \"1\", \"plugins\": [{\"name\": \"found\", \"description\": \"Sleeps well\", \"versions\": [\n\
         {\"version\": \"0.1.0\", \"manifest\": \"found/found.manifest.json\"}]}]}\nEND",
    )?;
    host.sh(
        "systemd-run --unit web-server --property WorkingDirectory=/root/web \
         busybox httpd -f -vv -p 127.0.0.1:8000",
    )?;
    site.page("http://127.0.0.1:8000/index.json")?;
    site.set("indexes", "[\"http://127.0.0.1:8000/index.json\"]")?;
    let found = host.sh("volar plugins search sleeps")?;
    ensure!(
        found.contains("found") && found.contains("0.1.0"),
        "{found}"
    );
    host.sh("volar plugins install found")?;
    let fetched =
        || host.sh("journalctl --no-pager -o cat -u web-server | grep -c found.cpio.gz || true");
    let before = fetched()?;
    host.sh("volar plugins install found && volar plugins install found@0.1.0")?;
    ensure!(
        before == fetched()?,
        "an artifact that is there was fetched again"
    );
    let text = site.refused("volar plugins install nowhere")?;
    ensure!(text.contains("nowhere"), "{text}");
    Ok(())
}

#[test]
fn a_byte_that_changes_in_the_store_is_noticed_before_it_boots() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.plugin("solid", "exec sleep 1000000", "")?;
    site.create("a", "solid")?;
    host.sh("volar plugins verify && volar vms stop a")?;
    let digest =
        host.sh("jq -r .initramfs.checksum /root/solid/solid.manifest.json | sed s/sha256://")?;
    let blob = format!("/var/lib/volant/registry/blobs/sha256/{}", digest.trim());
    // As root can, with the time set back.
    host.sh(&format!(
        "touch -r {blob} /root/stamp && (chattr -i {blob} 2>/dev/null; true) && cp {blob} /root/blob && \
         printf x | dd of=/root/blob bs=1 seek=5000 conv=notrunc status=none && cat /root/blob > {blob} 2>/dev/null || \
         (rm {blob} && cp /root/blob {blob} && chown volant-registry: {blob} && chmod 444 {blob}); touch -r /root/stamp {blob}"
    ))?;
    let text = site.refused("volar vms start a")?;
    ensure!(
        text.contains("initramfs") && text.contains("solid"),
        "{text}"
    );
    let text = site.refused("volar plugins verify solid")?;
    ensure!(text.contains("initramfs"), "{text}");
    host.sh("volar plugins install --manifest /root/solid/solid.manifest.json && volar plugins verify && volar vms start a")?;
    Ok(())
}

#[test]
fn the_bus_has_plugins_as_objects() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    let tree = host.sh("busctl tree --list com.volantvm.Registry1")?;
    let object = tree
        .lines()
        .find(|line| line.contains("/plugin/hello"))
        .with_context(|| format!("no object of hello: {tree}"))?
        .trim();
    let enabled = format!(
        "busctl get-property com.volantvm.Registry1 {object} com.volantvm.Registry1.Plugin Enabled"
    );
    ensure!(host.sh(&enabled)?.contains("true"));
    host.sh("(timeout 60 busctl monitor com.volantvm.Registry1 > /root/seen 2>&1 &) && volar plugins disable hello")?;
    ensure!(host.sh(&enabled)?.contains("false"));
    host.sh("volar plugins enable hello")?;
    site.plugin("other", "exec sleep 1000000", "")?;
    eventually(
        "the bus told of the new plugin",
        Duration::from_secs(20),
        || {
            Ok(host
                .sh("cat /root/seen")?
                .contains("/com/volantvm/Registry1/plugin/other")
                .then_some(()))
        },
    )?;
    Ok(())
}
