//! Which VMM runs a VM on this host, and why.
//!
//! [`Facts::gather`] looks, [`choose`] decides and touches nothing.

use std::{
    env,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use volant_spec::config::Vmm;

use super::{CloudHypervisor, Hypervisor, Qemu};

/// Where programs are looked for besides `PATH`.
const FOLDERS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/lib/volant"];

/// What a host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The processor's flags have `vmx` or `svm`.
    pub virtualisation: bool,
    pub kvm: Kvm,
    pub cloud_hypervisor: Option<PathBuf>,
    pub qemu: Option<PathBuf>,
    pub vhost_device_vsock: Option<PathBuf>,
}

/// What `/dev/kvm` is to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kvm {
    Opens,
    Absent,
    /// There, but not for this user.
    Denied,
    /// There, and opening it fails.
    Broken,
}

/// How a guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accel {
    /// By the processor's virtualisation.
    Kvm,
    /// By QEMU's emulation.
    Tcg,
}

/// The programs to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Programs {
    CloudHypervisor { program: PathBuf },
    Qemu { program: PathBuf, vsock: PathBuf },
}

/// A decision, and why it is this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub programs: Programs,
    pub accel: Accel,
    /// For people.
    pub reason: String,
}

/// Why no VMM can run here. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DetectError {
    #[error("cloud-hypervisor cannot run here: {0}; choose vmm = \"qemu\" or \"auto\"")]
    NoKvm(&'static str),
    #[error(
        "cloud-hypervisor is not installed; put version 52 or newer into /usr/local/bin, or choose vmm = \"qemu\" or \"auto\""
    )]
    NoCloudHypervisor,
    #[error("qemu-system-x86_64 is not installed; install the package qemu-system-x86")]
    NoQemu,
    #[error("vhost-device-vsock is not installed at /usr/lib/volant; reinstall the package volant")]
    NoVsock,
}

impl Facts {
    /// Looks at this host, as this user.
    #[must_use]
    pub fn gather() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let path = env::var_os("PATH").unwrap_or_default();
        let find = |first: Option<&str>, program: &str| {
            first
                .map(PathBuf::from)
                .into_iter()
                .chain(env::split_paths(&path))
                .chain(FOLDERS.iter().map(PathBuf::from))
                .map(|folder| folder.join(program))
                .find(|file| is_executable(file))
        };
        Self {
            virtualisation: has_virtualisation(&cpuinfo),
            kvm: open_kvm(),
            cloud_hypervisor: find(None, "cloud-hypervisor"),
            qemu: find(None, "qemu-system-x86_64"),
            vhost_device_vsock: find(Some("/usr/lib/volant"), "vhost-device-vsock"),
        }
    }

    /// Why the processor's virtualisation cannot be used, if it cannot.
    fn without_kvm(&self) -> Option<&'static str> {
        match (self.kvm, self.virtualisation) {
            (Kvm::Absent, _) => Some("there is no /dev/kvm"),
            (Kvm::Denied, _) => Some("/dev/kvm is closed to this user (is it in group kvm?)"),
            (Kvm::Broken, _) => Some("/dev/kvm does not open"),
            (Kvm::Opens, false) => Some("the processor shows neither vmx nor svm"),
            (Kvm::Opens, true) => None,
        }
    }
}

/// Decides what `vmm` means on a host with these facts.
///
/// # Errors
/// What is missing.
pub fn choose(vmm: Vmm, facts: &Facts) -> Result<Choice, DetectError> {
    let without_kvm = facts.without_kvm();
    match (vmm, &facts.cloud_hypervisor, without_kvm) {
        (Vmm::CloudHypervisor, _, Some(why)) => Err(DetectError::NoKvm(why)),
        (Vmm::CloudHypervisor, None, None) => Err(DetectError::NoCloudHypervisor),
        (Vmm::CloudHypervisor, Some(program), None) => {
            Ok(cloud_hypervisor(program, "as configured"))
        }
        (Vmm::Auto, Some(program), None) => Ok(cloud_hypervisor(
            program,
            "it is installed and KVM is usable",
        )),
        (Vmm::Auto, _, Some(why)) => {
            qemu(facts, Accel::Tcg, &format!("{why}: the guest is emulated"))
        }
        (Vmm::Auto, None, None) => qemu(
            facts,
            Accel::Kvm,
            "KVM is usable and cloud-hypervisor is not installed",
        ),
        (Vmm::Qemu, _, Some(why)) => qemu(
            facts,
            Accel::Tcg,
            &format!("as configured; {why}: the guest is emulated"),
        ),
        (Vmm::Qemu, _, None) => qemu(facts, Accel::Kvm, "as configured; KVM is usable"),
    }
}

fn cloud_hypervisor(program: &Path, why: &str) -> Choice {
    Choice {
        programs: Programs::CloudHypervisor {
            program: program.to_owned(),
        },
        accel: Accel::Kvm,
        reason: format!("cloud-hypervisor: {why}"),
    }
}

fn qemu(facts: &Facts, accel: Accel, why: &str) -> Result<Choice, DetectError> {
    let program = facts.qemu.clone().ok_or(DetectError::NoQemu)?;
    let vsock = facts
        .vhost_device_vsock
        .clone()
        .ok_or(DetectError::NoVsock)?;
    Ok(Choice {
        programs: Programs::Qemu { program, vsock },
        accel,
        reason: format!("qemu ({}): {why}", accel.as_str()),
    })
}

impl Choice {
    /// The driver of the chosen programs.
    #[must_use]
    pub fn hypervisor(self) -> Box<dyn Hypervisor> {
        match self.programs {
            Programs::CloudHypervisor { program } => Box::new(CloudHypervisor::new(program)),
            Programs::Qemu { program, vsock } => Box::new(Qemu::new(program, vsock, self.accel)),
        }
    }
}

impl Accel {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| matches!(flag, "vmx" | "svm"))
}

fn open_kvm() -> Kvm {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Kvm::Opens,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Kvm::Absent,
            io::ErrorKind::PermissionDenied => Kvm::Denied,
            _ => Kvm::Broken,
        },
    }
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Facts {
        Facts {
            virtualisation: true,
            kvm: Kvm::Opens,
            cloud_hypervisor: Some("/c".into()),
            qemu: Some("/q".into()),
            vhost_device_vsock: Some("/v".into()),
        }
    }

    #[test]
    fn the_choice_follows_from_the_facts() {
        let all = everything();
        let no_ch = Facts {
            cloud_hypervisor: None,
            ..all.clone()
        };
        let flags = Facts {
            virtualisation: false,
            ..all.clone()
        };
        let no_kvm = Facts {
            kvm: Kvm::Absent,
            ..all.clone()
        };
        let denied = Facts {
            kvm: Kvm::Denied,
            ..all.clone()
        };
        let broken = Facts {
            kvm: Kvm::Broken,
            ..all.clone()
        };
        let cases = [
            (
                Vmm::Auto,
                &all,
                "cloud-hypervisor: it is installed and KVM is usable",
            ),
            (
                Vmm::Auto,
                &no_ch,
                "qemu (kvm): KVM is usable and cloud-hypervisor is not installed",
            ),
            (
                Vmm::Auto,
                &flags,
                "qemu (tcg): the processor shows neither vmx nor svm: the guest is emulated",
            ),
            (
                Vmm::Auto,
                &no_kvm,
                "qemu (tcg): there is no /dev/kvm: the guest is emulated",
            ),
            (
                Vmm::Auto,
                &denied,
                "qemu (tcg): /dev/kvm is closed to this user (is it in group kvm?): the guest is emulated",
            ),
            (
                Vmm::Auto,
                &broken,
                "qemu (tcg): /dev/kvm does not open: the guest is emulated",
            ),
            (
                Vmm::CloudHypervisor,
                &all,
                "cloud-hypervisor: as configured",
            ),
            (Vmm::Qemu, &all, "qemu (kvm): as configured; KVM is usable"),
            (
                Vmm::Qemu,
                &no_kvm,
                "qemu (tcg): as configured; there is no /dev/kvm: the guest is emulated",
            ),
        ];
        for (vmm, facts, expected) in cases {
            let choice = choose(vmm, facts).unwrap();
            assert_eq!(choice.reason, expected);
            let name = choice.clone().hypervisor().name();
            assert!(choice.reason.starts_with(name), "{name}: {expected}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let all = everything();
        let cases = [
            (
                Vmm::CloudHypervisor,
                Facts {
                    kvm: Kvm::Absent,
                    ..all.clone()
                },
                "no /dev/kvm",
            ),
            (
                Vmm::CloudHypervisor,
                Facts {
                    virtualisation: false,
                    ..all.clone()
                },
                "neither vmx nor svm",
            ),
            (
                Vmm::CloudHypervisor,
                Facts {
                    cloud_hypervisor: None,
                    ..all.clone()
                },
                "cloud-hypervisor is not installed",
            ),
            (
                Vmm::Qemu,
                Facts {
                    qemu: None,
                    ..all.clone()
                },
                "install the package qemu-system-x86",
            ),
            (
                Vmm::Qemu,
                Facts {
                    vhost_device_vsock: None,
                    ..all.clone()
                },
                "vhost-device-vsock is not installed",
            ),
            (
                Vmm::Auto,
                Facts {
                    kvm: Kvm::Absent,
                    qemu: None,
                    ..all
                },
                "install the package qemu-system-x86",
            ),
        ];
        for (vmm, facts, expected) in cases {
            let error = choose(vmm, &facts).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn virtualisation_is_a_whole_flag() {
        for (flags, expected) in [
            ("flags\t\t: fpu vmx sse", true),
            ("flags\t\t: fpu svm", true),
            ("flags\t\t: fpu svm_lock xvmx", false),
            ("vmx flags\t: vnmi", false),
            ("model name\t: svm", false),
        ] {
            assert_eq!(has_virtualisation(flags), expected, "{flags}");
        }
    }
}
