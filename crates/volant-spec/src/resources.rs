//! How much of the host a VM gets.

use serde::{Deserialize, Serialize};

/// Virtual CPUs and memory of a VM. A value that deserialises is within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, try_from = "Unchecked")]
#[cfg_attr(feature = "schema", schemars(!try_from))]
pub struct Resources {
    pub cpu_cores: u32,
    /// In MiB.
    pub memory_mb: u32,
}

/// The guest kernel's `NR_CPUS`.
pub const MAX_CPU_CORES: u32 = 64;
/// Less does not boot a kernel and its agent.
pub const MIN_MEMORY_MB: u32 = 64;
/// 4 TiB.
pub const MAX_MEMORY_MB: u32 = 4 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourcesError {
    #[error("{0} CPUs are not possible; give 1 to {MAX_CPU_CORES}")]
    CpuCores(u32),
    #[error("{0} MiB of memory are not possible; give {MIN_MEMORY_MB} to {MAX_MEMORY_MB}")]
    Memory(u32),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    cpu_cores: u32,
    memory_mb: u32,
}

impl Resources {
    /// Checks both values against the limits.
    ///
    /// # Errors
    /// A value that is out of range, with the range.
    pub fn new(cpu_cores: u32, memory_mb: u32) -> Result<Self, ResourcesError> {
        if !(1..=MAX_CPU_CORES).contains(&cpu_cores) {
            return Err(ResourcesError::CpuCores(cpu_cores));
        }
        if !(MIN_MEMORY_MB..=MAX_MEMORY_MB).contains(&memory_mb) {
            return Err(ResourcesError::Memory(memory_mb));
        }
        Ok(Self {
            cpu_cores,
            memory_mb,
        })
    }
}

impl Default for Resources {
    /// One CPU and 256 MiB.
    fn default() -> Self {
        Self {
            cpu_cores: 1,
            memory_mb: 256,
        }
    }
}

impl TryFrom<Unchecked> for Resources {
    type Error = ResourcesError;

    fn try_from(unchecked: Unchecked) -> Result<Self, ResourcesError> {
        Self::new(unchecked.cpu_cores, unchecked.memory_mb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_told_with_the_range() {
        assert!(Resources::new(1, 64).is_ok());
        assert!(
            Resources::new(0, 64)
                .unwrap_err()
                .to_string()
                .contains("1 to 64")
        );
        assert!(Resources::new(65, 64).is_err());
        assert!(
            Resources::new(1, 0)
                .unwrap_err()
                .to_string()
                .contains("0 MiB")
        );
        assert!(Resources::new(1, u32::MAX).is_err());
    }
}
