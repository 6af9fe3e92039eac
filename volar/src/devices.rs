//! `volar devices`: the PCI devices of the host, and who could have them.

use comfy_table::Color;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Failures,
    args::{Devices, Validate},
    client::{Client, Wish},
    ended,
    failure::Failure,
    output::{Output, Shown},
    view::{or_dash, read},
};

/// As the API gives it, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Device {
    address: String,
    kind: String,
    class: String,
    driver: Option<String>,
    iommu_group: Option<u64>,
    #[serde(default)]
    group_devices: Vec<String>,
    numa_node: Option<u64>,
    vm: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Validated {
    problems: Vec<String>,
}

pub async fn run(command: Devices, client: &Client, output: &Output) -> Result<(), Failures> {
    match command {
        Devices::List => Ok(list(client, output).await?),
        Devices::Get { addresses } => get(&addresses, client, output).await,
        Devices::Validate(given) => Ok(validate(given, client, output).await?),
    }
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let answer = client.devices().await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let devices: Vec<Device> = read(answer)?;
    if output.quiet {
        let addresses: Vec<_> = devices.into_iter().map(|device| device.address).collect();
        return output.names(&addresses);
    }
    if devices.is_empty() {
        return output.text("this host has no PCI devices");
    }
    output.table(
        ["ADDRESS", "KIND", "CLASS", "DRIVER", "GROUP", "VM"],
        devices.iter().map(Device::row).collect(),
    )
}

async fn get(addresses: &[String], client: &Client, output: &Output) -> Result<(), Failures> {
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for address in addresses {
        match client.device(address).await {
            Ok(device) => found.push(device),
            Err(failure) => failures.push(failure),
        }
    }
    if output.is_json() {
        output.json(&found)?;
    } else {
        for (at, device) in found.into_iter().enumerate() {
            if at > 0 {
                output.text("")?;
            }
            output.facts(&read::<Device>(device)?.facts())?;
        }
    }
    ended(failures)
}

async fn validate(given: Validate, client: &Client, output: &Output) -> Result<(), Failure> {
    let wish = Wish {
        pci: given.addresses,
        allowlist: given.allow,
        vm: given.vm,
    };
    let answer: Value = client.validate_devices(&wish).await?;
    let Validated { problems } = read(answer.clone())?;
    if output.is_json() {
        output.json(&answer)?;
    } else if problems.is_empty() {
        output.done("a VM can have them")?;
    } else {
        output.text(&problems.join("\n"))?;
    }
    match problems.len() {
        0 => Ok(()),
        count => Err(Failure::NotLendable { count }),
    }
}

impl Device {
    fn row(&self) -> [Shown; 6] {
        [
            self.address.as_str().into(),
            self.kind.as_str().into(),
            class(&self.class).into(),
            or_dash(self.driver.as_deref()),
            number(self.iommu_group),
            self.lent(),
        ]
    }

    fn facts(&self) -> Vec<(&'static str, Shown)> {
        let peers: Vec<_> = self
            .group_devices
            .iter()
            .filter(|peer| **peer != self.address)
            .map(String::as_str)
            .collect();
        let with = match peers.is_empty() {
            true => "alone".to_owned(),
            false => format!("with {}", peers.join(", ")),
        };
        let group = match self.iommu_group {
            Some(group) => format!("{group} ({with})").into(),
            None => "none: it cannot be kept from the host's memory".into(),
        };
        vec![
            ("Address", self.address.as_str().into()),
            ("Kind", self.kind.as_str().into()),
            (
                "Class",
                format!("{} ({})", self.class, class(&self.class)).into(),
            ),
            ("Driver", or_dash(self.driver.as_deref())),
            ("IOMMU group", group),
            ("NUMA node", number(self.numa_node)),
            ("VM", self.lent()),
        ]
    }

    fn lent(&self) -> Shown {
        Shown {
            colour: self.vm.is_some().then_some(Color::Green),
            ..or_dash(self.vm.as_deref())
        }
    }
}

fn number(number: Option<u64>) -> Shown {
    or_dash(number.map(|number| number.to_string()).as_deref())
}

/// What a class is to people, by its first two digits; and by two more where they make a difference.
fn class(code: &str) -> &str {
    match code.get(..4).unwrap_or(code) {
        "0108" => "nvme",
        "0200" => "ethernet",
        "0300" | "0302" => "gpu",
        "0403" => "sound",
        "0600" => "host bridge",
        "0604" => "pci bridge",
        "0c03" => "usb",
        _ => match code.get(..2).unwrap_or(code) {
            "01" => "storage",
            "02" => "network",
            "03" => "display",
            "04" => "multimedia",
            "05" => "memory",
            "06" => "bridge",
            "0c" => "serial bus",
            "12" => "accelerator",
            _ => code,
        },
    }
}
