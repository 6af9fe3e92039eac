//! Which VM a process belongs to: its unit tells, not its word.

use std::{fs, io};

use volant_spec::{Name, unit};

#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    #[error("cannot read the control group of process {pid}")]
    Read { pid: u32, source: io::Error },
    #[error("process {pid} is not part of a VM's unit (volant-vm@NAME.service)")]
    NoVm { pid: u32 },
}

/// The VM whose unit the process is in.
///
/// # Errors
/// The process is gone, or is in no VM's unit.
pub fn vm_of_pid(pid: u32) -> Result<Name, CallerError> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .map_err(|source| CallerError::Read { pid, source })?;
    unit::vm_of_cgroup(&text).ok_or(CallerError::NoVm { pid })
}
