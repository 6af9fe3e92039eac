//! The guest kernel: Debian's source, our options, built once per pair of them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build::workspace, cache, say};

const SOURCE: &str = "linux-source-6.1";
/// How often a build that takes its time says how far it is.
const TELL: Duration = Duration::from_secs(15);

/// The kernel's files.
#[derive(Debug)]
pub struct Kernel {
    /// Uncompressed, stripped; without an initramfs of its own.
    pub vmlinux: PathBuf,
    /// Compressed, with the boot initramfs baked in.
    pub bzimage: PathBuf,
    /// The boot initramfs alone, as a file: an uncompressed cpio archive.
    pub initramfs: PathBuf,
    /// The configuration that both were built with, complete.
    pub config: PathBuf,
    /// Of Debian's source package.
    pub source_version: String,
}

/// Builds the kernel with `boot_initramfs` (an uncompressed cpio archive) baked into its bzImage.
///
/// # Errors
/// The source is not installed, or the build failed: the error names the log.
pub fn build(boot_initramfs: &[u8]) -> Result<Kernel> {
    let options = fs::read(workspace().join("packaging/kernel/microvm.config"))
        .context("cannot read packaging/kernel/microvm.config")?;
    let source_version = say::quietly(Command::new("dpkg-query").args([
        "--show",
        "--showformat",
        "${Version}",
        SOURCE,
    ]))?;
    let key = cache::key(&[source_version.as_bytes(), &options]);
    let folder = cache::folder("kernel")?.join(key);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _lock = cache::lock(&folder)?;

    let vmlinux = folder.join("vmlinux");
    let config = folder.join("config");
    if !vmlinux.exists() {
        say::step(format!(
            "Building the guest kernel from {SOURCE} {source_version} (about 8 minutes, once)"
        ));
        configure(&folder, &options)?;
        make(&folder, &["vmlinux", "bzImage"])?;
        fs::copy(folder.join("build/.config"), &config)
            .context("cannot keep the kernel's configuration")?;
        let stripped = folder.join("vmlinux.new");
        say::quietly(
            Command::new("strip")
                .arg("-o")
                .arg(&stripped)
                .arg(folder.join("build/vmlinux")),
        )?;
        fs::rename(&stripped, &vmlinux).context("cannot keep vmlinux")?;
    }
    let boot = cache::key(&[boot_initramfs]);
    let initramfs = folder.join(format!("initramfs-{boot}.cpio"));
    if !initramfs.exists() {
        let new = folder.join("initramfs.new");
        fs::write(&new, boot_initramfs).context("cannot write the boot initramfs")?;
        fs::rename(&new, &initramfs).context("cannot keep the boot initramfs")?;
    }
    let bzimage = folder.join(format!("bzImage-{boot}"));
    if !bzimage.exists() {
        say::step("Baking the boot initramfs into bzImage");
        bake(&folder, &options, &initramfs, &bzimage)?;
    }
    Ok(Kernel {
        vmlinux,
        bzimage,
        initramfs,
        config,
        source_version,
    })
}

/// Unpacks the source and settles the options; what an interrupted build left is removed.
fn configure(folder: &Path, options: &[u8]) -> Result<()> {
    for dir in ["src", "build"] {
        let dir = folder.join(dir);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let archive = format!("/usr/src/{SOURCE}.tar.xz");
    say::quietly(
        Command::new("tar")
            .args(["-xJf", &archive, "--strip-components=1", "-C"])
            .arg(folder.join("src")),
    )?;
    fs::write(folder.join("microvm.config"), options)
        .context("cannot write the kernel's options")?;
    make(folder, &["tinyconfig"])?;
    say::quietly(
        Command::new("scripts/kconfig/merge_config.sh")
            .current_dir(folder.join("src"))
            .args([
                "-m",
                "-O",
                "../build",
                "../build/.config",
                "../microvm.config",
            ]),
    )?;
    make(folder, &["olddefconfig"])?;
    dropped_options(folder, options)
}

/// Fails when an option did not survive `olddefconfig`: a dependency is missing then, or the name is wrong.
fn dropped_options(folder: &Path, options: &[u8]) -> Result<()> {
    let settled = fs::read_to_string(folder.join("build/.config"))
        .context("cannot read the settled options")?;
    let text = String::from_utf8_lossy(options);
    let is_settled = |line: &str| match line.strip_suffix("=n") {
        Some(name) => !settled
            .lines()
            .any(|found| found.starts_with(&format!("{name}="))),
        None => settled.lines().any(|found| found == line),
    };
    let dropped: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !is_settled(line))
        .collect();
    ensure!(
        dropped.is_empty(),
        "the kernel's configuration did not take: {}",
        dropped.join(", ")
    );
    Ok(())
}

fn bake(folder: &Path, options: &[u8], initramfs: &Path, bzimage: &Path) -> Result<()> {
    let tree = folder.join("build");
    if !tree.join("vmlinux").exists() {
        configure(folder, options)?;
    }
    // Under one name: the kernel has it in its configuration.
    fs::copy(initramfs, folder.join("boot.cpio")).context("cannot copy the boot initramfs")?;
    say::quietly(
        Command::new("scripts/config")
            .current_dir(folder.join("src"))
            .args([
                "--file",
                "../build/.config",
                "--set-str",
                "INITRAMFS_SOURCE",
                "../boot.cpio",
            ])
            .args(["--enable", "INITRAMFS_COMPRESSION_NONE"]),
    )?;
    make(folder, &["olddefconfig", "bzImage"])?;
    let new = folder.join("bzImage.new");
    fs::copy(tree.join("arch/x86/boot/bzImage"), &new).context("cannot keep bzImage")?;
    fs::rename(&new, bzimage).context("cannot keep bzImage")?;
    Ok(())
}

/// Runs make in the tree. The build is the same on any day and machine: the stamps that a kernel carries are fixed.
fn make(folder: &Path, goals: &[&str]) -> Result<()> {
    let jobs = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let log = folder.join("build.log");
    let output = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let errors = output.try_clone().context("cannot share the build's log")?;
    let mut child = Command::new("make")
        .current_dir(folder.join("src"))
        .args(["O=../build", &format!("-j{jobs}")])
        .args(goals)
        .envs([
            ("KBUILD_BUILD_TIMESTAMP", "2024-01-01 00:00:00 UTC"),
            ("KBUILD_BUILD_USER", "volant"),
            ("KBUILD_BUILD_HOST", "volant"),
            ("KBUILD_BUILD_VERSION", "1"),
        ])
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .context("cannot start make")?;
    let begun = Instant::now();
    let mut told = begun;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for make")? {
            break status;
        }
        if told.elapsed() > TELL {
            told = Instant::now();
            let steps = fs::read_to_string(&log).unwrap_or_default().lines().count();
            eprintln!("    {} s, {steps} steps", begun.elapsed().as_secs());
        }
        thread::park_timeout(Duration::from_millis(200));
    };
    if !status.success() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(30)..].join("\n");
        bail!(
            "make {} failed ({status}); the end of {}:\n{end}",
            goals.join(" "),
            log.display()
        );
    }
    Ok(())
}
