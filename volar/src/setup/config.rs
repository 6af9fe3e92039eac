//! What becomes of `/etc/volant/volant.toml`. Decides; writes nothing.

use toml_edit::{DocumentMut, Item, Table, value};
use volant_spec::{
    Config,
    config::{LinkName, PATH, Subnet, TRUST_DIR},
};

/// What to do with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Keep,
    Create(String),
    Change(String),
}

/// The file that is there cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    #[error("{PATH} is not valid; correct it first")]
    Parse(#[source] Box<toml::de::Error>),
    #[error("{PATH} is not valid; correct it first")]
    Edit(#[source] toml_edit::TomlError),
    #[error("{PATH} has something else than a table at 'network'")]
    NoTable,
}

/// The configuration as it will be, and what to do for that. A file that is there keeps all but the two given
/// keys, comments included.
///
/// # Errors
/// The file that is there is not valid.
pub fn plan(
    written: Option<&str>,
    bridge: Option<&LinkName>,
    subnet: Option<Subnet>,
) -> Result<(Config, Plan), ConfigFileError> {
    let parse = |text: &str| {
        toml::from_str::<Config>(text).map_err(|error| ConfigFileError::Parse(Box::new(error)))
    };
    let now = written.map(parse).transpose()?.unwrap_or_default();
    let mut wanted = now.clone();
    if let Some(bridge) = bridge {
        wanted.network.bridge = bridge.clone();
    }
    if let Some(subnet) = subnet {
        wanted.network.subnet = subnet;
    }
    let plan = match written {
        None => Plan::Create(fresh(&wanted)),
        Some(_) if wanted == now => Plan::Keep,
        Some(text) => Plan::Change(changed(text, bridge, subnet)?),
    };
    Ok((wanted, plan))
}

fn changed(
    text: &str,
    bridge: Option<&LinkName>,
    subnet: Option<Subnet>,
) -> Result<String, ConfigFileError> {
    let mut document: DocumentMut = text.parse().map_err(ConfigFileError::Edit)?;
    let network = document
        .entry("network")
        .or_insert_with(|| Item::Table(Table::new()));
    let network = network
        .as_table_like_mut()
        .ok_or(ConfigFileError::NoTable)?;
    let mut set = |key: &str, text: String| {
        // The old value's decoration holds a comment behind it.
        let mut new = toml_edit::Value::from(text);
        if let Some(old) = network.get(key).and_then(Item::as_value) {
            *new.decor_mut() = old.decor().clone();
        }
        network.insert(key, value(new));
    };
    if let Some(bridge) = bridge {
        set("bridge", bridge.as_str().to_owned());
    }
    if let Some(subnet) = subnet {
        set("subnet", subnet.net().to_string());
    }
    Ok(document.to_string())
}

/// A file that names every setting; what is by default is a comment.
fn fresh(config: &Config) -> String {
    let usual = Config::default();
    let comment = |is_usual: bool| if is_usual { "# " } else { "" };
    let (network, vm, plugins) = (&config.network, &usual.vm, &usual.plugins);
    format!(
        "# Volant's settings. A commented line shows the default.\n\
         # The services read this file when they start; those of VMs with the VM's next start.\n\
         \n\
         [network]\n\
         # The bridge of the VMs. Volant makes it; the name must not be taken by another link.\n\
         {}bridge = \"{}\"\n\
         # VMs get addresses of this network, the host its first one.\n\
         {}subnet = \"{}\"\n\
         # Name servers of the guests. Empty: the host's own, without those on loopback.\n\
         # dns = []\n\
         \n\
         [vm]\n\
         # auto, cloud-hypervisor or qemu.\n\
         # vmm = \"{}\"\n\
         # The kernel of plugins that bring none.\n\
         # kernel = \"{}\"\n\
         # The kernel of plugins that ask for \"bzimage\", and what boots those with a root file system.\n\
         # bzimage = \"{}\"\n\
         # initramfs = \"{}\"\n\
         # Seconds from a VM's start to its agent's first call, 1 to 600.\n\
         # boot_timeout_sec = {}\n\
         \n\
         [plugins]\n\
         # A plugin that no key in {TRUST_DIR} signed: require refuses it, warn tells, off does not look.\n\
         # signatures = \"{}\"\n\
         # URLs of indexes: what volar plugins install NAME and search look into, the first one first.\n\
         # indexes = []\n\
         # Credentials for registries, as podman and docker have them.\n\
         # auth_file = \"{}\"\n",
        comment(network.bridge == usual.network.bridge),
        network.bridge.as_str(),
        comment(network.subnet == usual.network.subnet),
        network.subnet.net(),
        vm.vmm.as_str(),
        vm.kernel.display(),
        vm.bzimage.display(),
        vm.initramfs.display(),
        vm.boot_timeout_sec.duration().as_secs(),
        plugins.signatures.as_str(),
        plugins.auth_file.0.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> LinkName {
        LinkName::try_from("br7".to_owned()).unwrap()
    }

    fn subnet() -> Subnet {
        Subnet::try_from("10.7.0.0/16".parse::<ipnet::Ipv4Net>().unwrap()).unwrap()
    }

    fn parsed(plan: &Plan) -> Config {
        match plan {
            Plan::Create(text) | Plan::Change(text) => toml::from_str(text).unwrap(),
            Plan::Keep => panic!("nothing is written"),
        }
    }

    /// Each commented setting, as if an operator took its comment sign away.
    fn uncommented(text: &str) -> String {
        let is_setting = |line: &str| line.contains(" = ") && !line.contains(". ");
        let lines = text.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_setting(rest) => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_fresh_file_means_the_defaults_with_and_without_its_comment_signs() {
        let (config, plan) = plan(None, None, None).unwrap();
        assert_eq!(
            (config, parsed(&plan)),
            (Config::default(), Config::default())
        );
        let Plan::Create(text) = plan else { panic!() };
        let text = uncommented(&text);
        for key in [
            "bridge",
            "subnet",
            "dns",
            "vmm",
            "kernel",
            "bzimage",
            "initramfs",
            "boot_timeout_sec",
            "signatures",
            "indexes",
            "auth_file",
        ] {
            assert!(
                text.contains(&format!(
                    "
{key} = "
                )),
                "{key}: {text}"
            );
        }
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    }

    #[test]
    fn a_fresh_file_has_what_was_asked_for() {
        let (config, plan) = plan(None, Some(&bridge()), Some(subnet())).unwrap();
        assert_eq!(parsed(&plan), config);
        assert_eq!(
            (config.network.bridge, config.network.subnet),
            (bridge(), subnet())
        );
    }

    #[test]
    fn a_file_that_says_the_same_is_kept() {
        for (text, bridge, subnet) in [
            ("", None, None),
            ("[vm]\nvmm = 'qemu'", None, None),
            (
                "[network]\nbridge = 'br7'\nsubnet = '10.7.0.0/16'",
                Some(bridge()),
                Some(subnet()),
            ),
        ] {
            assert_eq!(
                plan(Some(text), bridge.as_ref(), subnet).unwrap().1,
                Plan::Keep,
                "{text}"
            );
        }
    }

    #[test]
    fn a_change_touches_two_keys_alone() {
        let text = "# mine\n[vm]\nvmm = 'qemu' # tried\n\n[network]\nbridge = 'br0' # why\ndns = ['9.9.9.9']\n";
        let (config, plan) = plan(Some(text), Some(&bridge()), Some(subnet())).unwrap();
        assert_eq!(parsed(&plan), config);
        let expected = "# mine\n[vm]\nvmm = 'qemu' # tried\n\n[network]\nbridge = \"br7\" # why\n\
                        dns = ['9.9.9.9']\nsubnet = \"10.7.0.0/16\"\n";
        assert_eq!(plan, Plan::Change(expected.to_owned()));
    }

    #[test]
    fn a_network_as_an_inline_table_can_be_changed() {
        for text in [
            "network = { bridge = 'br0' }\n",
            "",
            "[vm]\n",
            "network.bridge = 'x'\n",
        ] {
            let (config, plan) = plan(Some(text), Some(&bridge()), Some(subnet())).unwrap();
            assert_eq!(parsed(&plan), config, "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_valid_is_not_touched() {
        let error = plan(Some("[network]\nbrigde = 'x'"), Some(&bridge()), None).unwrap_err();
        assert!(error.to_string().contains("correct it first"));
    }
}
