//! The `.deb` packages: staged from tables, made by dpkg-deb.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use volant_testhost::Packages;

use crate::{
    build::{self, workspace},
    cache,
    kernel::{self, Kernel},
    say,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of Debian's package e2fsck-static.
const E2FSCK: &str = "/sbin/e2fsck.static";

/// A file of a package: where it comes from, where it goes, its mode.
type Entry = (PathBuf, String, u32);

/// Where the packages are put.
pub fn folder() -> PathBuf {
    build::target().join("package")
}

fn file(package: &str) -> PathBuf {
    folder().join(format!("{package}_{VERSION}_amd64.deb"))
}

/// Builds everything and makes the packages.
///
/// # Errors
/// A build failed, or a file is missing.
pub fn build() -> Result<Packages> {
    crate::prerequisites::install()?;
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _lock = cache::lock(&folder)?;
    let programs = build::programs()?;
    let backends = [
        ("vhost-device-vsock", build::vhost_device_vsock()?),
        ("virtiofsd", build::virtiofsd()?),
    ];
    let (kernel, kestrel) = kernel()?;

    say::step("Packing");
    let packed = ["volant", "volant-fledge", "volant-kernel"].map(file);
    for old in Packages::files_in(&folder)?
        .iter()
        .filter(|old| !packed.contains(old))
    {
        fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    make("volant", &volant(&programs, &backends)?, &[])?;
    make(
        "volant-fledge",
        &[(programs.join("fledge"), "usr/bin/fledge".to_owned(), 0o755)],
        &[],
    )?;
    make(
        "volant-kernel",
        &volant_kernel(&kernel, &kestrel, &tools()?),
        &[("@SOURCE_VERSION@", &kernel.source_version)],
    )?;
    for path in packed {
        let size = path
            .metadata()
            .with_context(|| format!("no {}", path.display()))?
            .len();
        eprintln!("    {} ({:.1} MB)", path.display(), size as f64 / 1e6);
    }
    Packages::in_folder(&folder)
}

/// Builds kestrel, and the guest kernel with kestrel in its boot initramfs; gives the kernel and kestrel's path.
///
/// # Errors
/// A build failed.
pub fn kernel() -> Result<(Kernel, PathBuf)> {
    crate::prerequisites::install()?;
    let kestrel = build::guest_program("kestrel")?;
    let agent = fs::read(&kestrel).with_context(|| format!("cannot read {}", kestrel.display()))?;
    let boot = fledge::initramfs::boot(&agent).context("cannot make the boot initramfs")?;
    Ok((kernel::build(&boot)?, kestrel))
}

/// Makes the archive of what guests check file systems with; gives its path.
fn tools() -> Result<PathBuf> {
    let e2fsck = fs::read(E2FSCK).with_context(|| format!("cannot read {E2FSCK}"))?;
    let archive = fledge::initramfs::tools(&e2fsck).context("cannot pack e2fsck")?;
    let path = folder().join("tools.cpio");
    fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn volant(programs: &Path, backends: &[(&str, PathBuf)]) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = ["ipamd", "registryd", "gatewayd", "deviced"]
        .map(|name| (programs.join(name), format!("usr/lib/volant/{name}"), 0o755))
        .into();
    // A VM's user must not read it: so the kernel closes a vmd that runs as that user to its VMM, from its first instruction on.
    let vmd = "usr/lib/volant/vmd".to_owned();
    entries.push((programs.join("vmd"), vmd, 0o711));
    entries.push((programs.join("volar"), "usr/bin/volar".to_owned(), 0o755));
    for (name, path) in backends {
        entries.push((path.clone(), format!("usr/lib/volant/{name}"), 0o755));
    }
    let units = workspace().join("units");
    for entry in fs::read_dir(&units).with_context(|| format!("cannot list {}", units.display()))? {
        let path = entry
            .with_context(|| format!("cannot list {}", units.display()))?
            .path();
        let name = path
            .file_name()
            .context("a unit has no name")?
            .to_string_lossy()
            .into_owned();
        entries.push((
            path,
            unit_path(&name).with_context(|| format!("units/{name}: no place for it"))?,
            0o644,
        ));
    }
    entries.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(entries)
}

/// Where a file of `units/` is installed; by its name, as its kind tells.
fn unit_path(name: &str) -> Option<String> {
    let folder = match name {
        "volant.sysusers" => return Some("usr/lib/sysusers.d/volant.conf".to_owned()),
        "volant.tmpfiles" => return Some("usr/lib/tmpfiles.d/volant.conf".to_owned()),
        "volant.catalog" => return Some("usr/lib/systemd/catalog/volant.catalog".to_owned()),
        "volant.preset" => {
            return Some("usr/lib/systemd/system-preset/50-volant.preset".to_owned());
        }
        _ if name.starts_with("com.volantvm.") && name.ends_with(".service") => {
            "usr/share/dbus-1/system-services"
        }
        _ if name.ends_with(".conf") => "usr/share/dbus-1/system.d",
        _ if name.ends_with(".rules") => "usr/share/polkit-1/rules.d",
        _ if [".service", ".socket", ".slice", ".target", ".timer"]
            .iter()
            .any(|end| name.ends_with(end)) =>
        {
            "usr/lib/systemd/system"
        }
        _ => return None,
    };
    Some(format!("{folder}/{name}"))
}

fn volant_kernel(kernel: &Kernel, kestrel: &Path, tools: &Path) -> Vec<Entry> {
    vec![
        (
            tools.to_owned(),
            "usr/lib/volant/kernel/tools.cpio".to_owned(),
            0o644,
        ),
        (
            kernel.vmlinux.clone(),
            "usr/lib/volant/kernel/vmlinux".to_owned(),
            0o644,
        ),
        (
            kernel.bzimage.clone(),
            "usr/lib/volant/kernel/bzImage".to_owned(),
            0o644,
        ),
        (
            kernel.initramfs.clone(),
            "usr/lib/volant/kernel/initramfs.cpio".to_owned(),
            0o644,
        ),
        (
            kernel.config.clone(),
            "usr/lib/volant/kernel/config".to_owned(),
            0o644,
        ),
        (
            kestrel.to_owned(),
            "usr/lib/volant/kestrel".to_owned(),
            0o755,
        ),
    ]
}

/// Stages the files and the control folder (`packaging/deb/NAME/`), and packs them.
fn make(name: &str, entries: &[Entry], replacements: &[(&str, &str)]) -> Result<()> {
    let stage = folder().join("stage").join(name);
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot remove {}", stage.display()))?;
    }
    for (source, path, mode) in entries {
        let target = stage.join(path);
        let parent = target.parent().context("a staged file has no folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::copy(source, &target).with_context(|| format!("cannot stage {}", source.display()))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(*mode))
            .with_context(|| format!("cannot set the mode of {}", target.display()))?;
    }
    let doc = stage.join("usr/share/doc").join(name);
    fs::create_dir_all(&doc).with_context(|| format!("cannot make {}", doc.display()))?;
    fs::copy(
        workspace().join("packaging/deb/copyright"),
        doc.join("copyright"),
    )
    .context("cannot stage the copyright file")?;
    control(name, &stage, replacements)?;

    let package = file(name);
    let new = package.with_extension("deb.new");
    say::quietly(
        Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group", "-Zxz", "-z1"])
            .args([&stage, &new])
            .env("SOURCE_DATE_EPOCH", "1704067200"),
    )?;
    fs::rename(&new, &package).with_context(|| format!("cannot keep {}", package.display()))
}

fn control(name: &str, stage: &Path, replacements: &[(&str, &str)]) -> Result<()> {
    let source = workspace().join("packaging/deb").join(name);
    let target = stage.join("DEBIAN");
    fs::create_dir(&target).with_context(|| format!("cannot make {}", target.display()))?;
    for entry in
        fs::read_dir(&source).with_context(|| format!("cannot list {}", source.display()))?
    {
        let path = entry
            .with_context(|| format!("cannot list {}", source.display()))?
            .path();
        let file = path.file_name().context("a control file has no name")?;
        let mut text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text = text.replace("@VERSION@", VERSION);
        for (placeholder, value) in replacements {
            text = text.replace(placeholder, value);
        }
        let staged = target.join(file);
        fs::write(&staged, text).with_context(|| format!("cannot write {}", staged.display()))?;
        let mode = if file == "control" { 0o644 } else { 0o755 };
        fs::set_permissions(&staged, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", staged.display()))?;
    }
    Ok(())
}
