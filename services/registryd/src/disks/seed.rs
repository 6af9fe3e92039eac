//! What cloud-init in the guest reads: a disk of its `NoCloud` data source.

use std::{fs::File, io, io::Write as _};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use volant_spec::manifest::CloudInit;

use super::fat;

/// By which cloud-init knows the disk.
const LABEL: &str = "CIDATA";
/// The agent has configured the network already.
const NO_NETWORK: &str = "config: disabled\n";
/// cloud-init does not take a disk without it for its seed.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";

/// A VM's seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub uuid: String,
    pub hostname: String,
    /// Those that are absent have a default.
    pub documents: CloudInit,
}

impl Seed {
    /// The documents by the names that cloud-init looks for.
    ///
    /// The instance is the VM, for as long as it exists: what cloud-init does once for an instance it does once, whatever else
    /// is configured later.
    fn files(&self) -> Vec<(&'static str, String)> {
        let given = &self.documents;
        let text = |document: &Option<volant_spec::manifest::Document>| {
            document.as_ref().map(|document| document.content.clone())
        };
        let meta_data = || {
            format!(
                "instance-id: {}\nlocal-hostname: {}\n",
                self.uuid, self.hostname
            )
        };
        let mut files = vec![
            (
                "meta-data",
                text(&given.meta_data).unwrap_or_else(meta_data),
            ),
            (
                "network-config",
                text(&given.network_config).unwrap_or_else(|| NO_NETWORK.to_owned()),
            ),
            (
                "user-data",
                text(&given.user_data).unwrap_or_else(|| NO_USER_DATA.to_owned()),
            ),
        ];
        files.extend(text(&given.vendor_data).map(|text| ("vendor-data", text)));
        files
    }

    /// The disk, in memory, open for reading. Nobody can change it.
    pub(super) fn file(&self) -> io::Result<File> {
        let files = self.files();
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, text)| (*name, text.as_bytes()))
            .collect();
        let image = fat::image(LABEL, &files)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("cidata", flags)?);
        file.write_all(&image)?;
        fcntl_add_seals(
            &file,
            SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
        )?;
        Ok(file)
    }
}
