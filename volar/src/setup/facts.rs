//! What this host is like. Looks, and decides nothing.

use std::{
    env, fs,
    io::ErrorKind,
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ipnet::Ipv4Net;
use nix::{sys::utsname, unistd};
use volant_spec::{
    Config,
    config::{SignaturePolicy, TRUST_DIR},
};
use volant_trust::Keyring;

/// Where packages put units.
const UNIT_FOLDERS: [&str; 3] = [
    "/etc/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// Searched after `PATH`, which lacks them for a user who is not root.
const MORE_FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As whom registryd runs.
const REGISTRYD: &str = "volant-registry";

/// All that the checks are about.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Such as `Linux x86_64`.
    pub platform: String,
    /// `None` when it is not installed.
    pub systemd: Option<u32>,
    pub systemd_runs: bool,
    pub virtualisation: bool,
    pub kvm: Kvm,
    pub qemu: Option<PathBuf>,
    pub cloud_hypervisor: Option<PathBuf>,
    pub vhost_device_vsock: bool,
    pub nft: Option<PathBuf>,
    pub polkit: bool,
    pub bus: bool,
    pub tun: bool,
    pub kernel: PathBuf,
    pub kernel_there: bool,
    pub missing_units: Vec<&'static str>,
    pub group: bool,
    /// The user who called sudo, when not in group volant.
    pub outsider: Option<String>,
    pub routes: Vec<Route>,
    pub signatures: SignaturePolicy,
    pub trust_folder: bool,
    pub trusted_keys: usize,
    /// Files that are meant to be trusted keys, and are not.
    pub trust_problems: Vec<String>,
    /// Where there are credentials for registries.
    pub credentials: Option<Credentials>,
    /// Every unit is enabled and active.
    pub active: bool,
}

/// The file with the credentials for registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub path: PathBuf,
    pub readers: Readers,
}

/// Who can read a file, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Not even registryd.
    TooFew,
    Right,
    Everyone,
}

/// What `/dev/kvm` is to root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kvm {
    Absent,
    Closed,
    Opens,
}

/// A network that a link leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub link: String,
    pub net: Ipv4Net,
}

impl Facts {
    pub fn gather(config: &Config, units: &[&'static str]) -> Self {
        let group = unistd::Group::from_name("volant").ok().flatten();
        let outsider = env::var("SUDO_USER").ok().filter(|user| {
            user != "root" && group.as_ref().is_none_or(|group| !group.mem.contains(user))
        });
        let is_there = |unit: &str| {
            UNIT_FOLDERS
                .iter()
                .any(|folder| Path::new(folder).join(unit).exists())
        };
        let trust = Keyring::load(Path::new(TRUST_DIR), 0);
        Self {
            platform: utsname::uname().map_or_else(
                |_| env::consts::OS.to_owned(),
                |name| format!("{} {}", name.sysname().display(), name.machine().display()),
            ),
            systemd: systemd_version(),
            systemd_runs: Path::new("/run/systemd/system").exists(),
            virtualisation: fs::read_to_string("/proc/cpuinfo")
                .is_ok_and(|text| virtualisation(&text)),
            kvm: kvm(),
            qemu: program("qemu-system-x86_64"),
            cloud_hypervisor: program("cloud-hypervisor"),
            vhost_device_vsock: Path::new("/usr/lib/volant/vhost-device-vsock").exists()
                || program("vhost-device-vsock").is_some(),
            nft: program("nft"),
            polkit: Path::new(
                "/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service",
            )
            .exists(),
            bus: Path::new("/run/dbus/system_bus_socket").exists(),
            tun: Path::new("/dev/net/tun").exists(),
            kernel_there: config.vm.kernel.is_file(),
            kernel: config.vm.kernel.clone(),
            missing_units: units
                .iter()
                .copied()
                .filter(|unit| !is_there(unit))
                .collect(),
            group: group.is_some(),
            outsider,
            routes: fs::read_to_string("/proc/net/route")
                .map_or_else(|_| Vec::new(), |text| routes(&text)),
            signatures: config.plugins.signatures,
            trust_folder: Path::new(TRUST_DIR).is_dir(),
            trusted_keys: trust.keyring.keys().count(),
            trust_problems: trust
                .problems
                .iter()
                .map(|problem| format!("{}: {}", problem.path.display(), problem.kind))
                .collect(),
            credentials: credentials(&config.plugins.auth_file.0),
            active: all_say("is-active", units, "active")
                && all_say("is-enabled", units, "enabled"),
        }
    }
}

fn kvm() -> Kvm {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => Kvm::Opens,
        Err(error) if error.kind() == ErrorKind::NotFound => Kvm::Absent,
        Err(_) => Kvm::Closed,
    }
}

fn credentials(path: &Path) -> Option<Credentials> {
    let file = fs::metadata(path).ok()?;
    let service = unistd::User::from_name(REGISTRYD).ok().flatten()?;
    let (owner, mode) = ((file.uid(), file.gid()), file.mode());
    Some(Credentials {
        path: path.to_owned(),
        readers: readers(owner, mode, (service.uid.as_raw(), service.gid.as_raw())),
    })
}

/// The first class that the service is in counts, as for the kernel.
fn readers(owner: (u32, u32), mode: u32, service: (u32, u32)) -> Readers {
    let bit = if owner.0 == service.0 {
        0o400
    } else if owner.1 == service.1 {
        0o040
    } else {
        0o004
    };
    match (mode & bit != 0, mode & 0o004 != 0) {
        (false, _) => Readers::TooFew,
        (true, false) => Readers::Right,
        (true, true) => Readers::Everyone,
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(env::split_paths(MORE_FOLDERS))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|path| {
            path.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

fn systemd_version() -> Option<u32> {
    let said = systemctl(&["--version"])?;
    said.split_whitespace().nth(1)?.parse().ok()
}

/// Whether systemctl answers each of the units with the same word.
fn all_say(verb: &str, units: &[&str], word: &str) -> bool {
    let arguments: Vec<&str> = std::iter::once(verb).chain(units.iter().copied()).collect();
    systemctl(&arguments).is_some_and(|said| {
        said.lines().count() == units.len() && said.lines().all(|line| line == word)
    })
}

fn systemctl(arguments: &[&str]) -> Option<String> {
    let output = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()
}

fn virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| matches!(flag, "vmx" | "svm"))
}

/// Reads `/proc/net/route`, whose numbers are in hexadecimal and of this machine's byte order.
fn routes(text: &str) -> Vec<Route> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let address = |at: usize| {
                let number = u32::from_str_radix(fields.get(at)?, 16).ok()?;
                Some(Ipv4Addr::from(number.to_ne_bytes()))
            };
            let net = Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?;
            let link = (*fields.first()?).to_owned();
            // The default route is no network of anybody's.
            (net.prefix_len() > 0).then_some(Route { link, net })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_but_for_the_default_one() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                    eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
                    nonsense\n";
        let net = "192.168.2.0/24".parse().unwrap();
        assert_eq!(
            routes(text),
            [Route {
                link: "eth0".to_owned(),
                net
            }]
        );
    }

    #[test]
    fn credentials_are_for_registryd_and_not_for_everyone() {
        let cases = [
            ((0, 0), 0o100600, Readers::TooFew),
            ((0, 0), 0o100640, Readers::TooFew),
            ((0, 9), 0o100640, Readers::Right),
            ((8, 0), 0o100600, Readers::Right),
            ((0, 0), 0o100644, Readers::Everyone),
            ((0, 9), 0o100604, Readers::TooFew),
        ];
        for (owner, mode, expected) in cases {
            assert_eq!(readers(owner, mode, (8, 9)), expected, "{owner:?} {mode:o}");
        }
    }

    #[test]
    fn virtualisation_is_a_flag_of_the_processor() {
        assert!(virtualisation("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(virtualisation("flags: svm\n"));
        assert!(!virtualisation(
            "vmx flags\t: none\nflags\t\t: fpu vmxnet\n"
        ));
    }
}
