//! A running VMM for the supervisor that is executed in the place of this one: its processes stay children of this process, and
//! all that was open to them stays open.

use std::io;

use serde::{Deserialize, Serialize};

use super::{
    Control,
    cloud_hypervisor::{self, CloudHypervisorState},
    qemu::{self, QemuState},
};

/// The way to a running VMM, written down. Its descriptors are [`volant_service::Heirlooms`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ControlState(Driver);

#[derive(Debug, Serialize, Deserialize)]
enum Driver {
    Qemu(QemuState),
    CloudHypervisor(CloudHypervisorState),
}

impl ControlState {
    pub(super) fn qemu(state: QemuState) -> Self {
        Self(Driver::Qemu(state))
    }

    pub(super) fn cloud_hypervisor(state: CloudHypervisorState) -> Self {
        Self(Driver::CloudHypervisor(state))
    }

    /// Takes over what an earlier supervisor left. Do so once.
    ///
    /// # Errors
    /// A descriptor is not what was written down.
    pub fn restore(self) -> io::Result<Box<dyn Control>> {
        match self.0 {
            Driver::Qemu(state) => qemu::restore(state),
            Driver::CloudHypervisor(state) => cloud_hypervisor::restore(state),
        }
    }
}
