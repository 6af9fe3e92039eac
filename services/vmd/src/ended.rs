//! How a VM ended, told apart: one line for people, one name for programs, one exit code for systemd.
//!
//! | exit code | names |
//! | --- | --- |
//! | 0 | `stopped`, `guest-power-off`, `workload-exited` with code 0 |
//! | the workload's | `workload-exited` (128 + n for signal n; 1 for 69 and 78) |
//! | 69 | `vmm-missing`; or the host does not lend the VM its devices: see [`crate::devices`] |
//! | 70 | `vmm-failed`, `vmm-crashed` |
//! | 71 | `kernel-panic` |
//! | 72 | `no-agent`, `no-workload` |
//! | 73 | `agent-fatal` |
//! | 74 | `agent-silent` |
//! | 75 | the host could not prepare the VM: see [`crate::prepare`] |
//! | 76 | `out-of-memory` |
//! | 77 | `reboot-loop` |
//! | 79 | `unhealthy` |
//! | 78 | the VM is not defined, or not validly: see [`crate::prepare`] |
//!
//! A workload may exit with one of these codes too; the journal's `VOLANT_ENDED` always tells them apart. Not so systemd,
//! which gives up a unit that exits with 69 or 78: for these of a workload vmd exits with 1, and tells the true one.

use std::fmt;

use crate::{hypervisor::VmmExit, life::Rung};

/// The VMM is not there, or the host does not lend what the VM is to have: another try will not succeed.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// The host could not prepare the VM; another try may succeed.
pub const EXIT_UNPREPARED: u8 = 75;
/// The VM is not defined, or its definition is not valid: another try will not succeed.
pub const EXIT_UNDEFINED: u8 = 78;

/// How the workload ended, as a shell tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadExit {
    /// The exit code, or 128 + the signal's number.
    pub code: u8,
    /// 0 where no signal ended it.
    pub signal: u32,
    /// The guest's kernel killed it, or a process of it, for want of memory.
    pub out_of_memory: bool,
}

impl WorkloadExit {
    #[must_use]
    pub fn new(code: u8, signal: u32) -> Self {
        Self {
            code,
            signal,
            out_of_memory: false,
        }
    }
}

impl fmt::Display for WorkloadExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal {
            0 => write!(f, "exited with code {}", self.code)?,
            signal => write!(f, "was killed by signal {signal}")?,
        }
        if self.out_of_memory {
            f.write_str("; the guest had no memory left: give it more, or let it need less")?;
        }
        Ok(())
    }
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Somebody asked for it; the rung of the stop ladder that worked.
    Stopped(Rung),
    Workload(WorkloadExit),
    GuestPowerOff,
    RebootLoop {
        reboots: usize,
        seconds: u64,
    },
    KernelPanic {
        line: String,
        /// An agent had said hello, in this boot or an earlier one.
        agent_called: bool,
    },
    AgentFatal {
        cause: String,
    },
    /// No agent said hello.
    NoAgent {
        seconds: u64,
    },
    /// The agent said hello, but not that the workload runs.
    NoWorkload {
        seconds: u64,
    },
    AgentSilent {
        seconds: u64,
    },
    /// The workload's health check failed, and it is not started again.
    Unhealthy {
        detail: String,
    },
    VmmMissing {
        cause: String,
    },
    /// The VMM did not start, or did not end.
    VmmFailed {
        cause: String,
    },
    VmmCrashed(VmmExit),
    /// The host's kernel killed the VMM, as the unit had no memory left.
    OutOfMemory,
}

impl Ended {
    /// The kebab-case name, for `VOLANT_ENDED=`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind().0
    }

    /// The journal's `MESSAGE_ID=`; one for each name.
    #[must_use]
    pub fn message_id(&self) -> &'static str {
        self.kind().1
    }

    /// What vmd exits with; see the module's table.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            // The unit's RestartPreventExitStatus= is for what vmd itself cannot mend.
            Self::Workload(WorkloadExit {
                code: EXIT_UNAVAILABLE | EXIT_UNDEFINED,
                ..
            }) => 1,
            Self::Workload(exit) => exit.code,
            _ => self.kind().2,
        }
    }

    fn kind(&self) -> (&'static str, &'static str, u8) {
        match self {
            Self::Stopped(_) => ("stopped", "0012f4daaf8e4aa984f71ecd3ff5409d", 0),
            Self::Workload(_) => ("workload-exited", "a10b4f3853df41e7ac85f05d1e0c9629", 0),
            Self::GuestPowerOff => ("guest-power-off", "9b71f13f9fb74e6793f8670f99fdbb8b", 0),
            Self::VmmMissing { .. } => (
                "vmm-missing",
                "ff5264fdbea541058bd68181d8826dc4",
                EXIT_UNAVAILABLE,
            ),
            Self::VmmFailed { .. } => ("vmm-failed", "2828d1a2f79b46d7929d093d416d84fb", 70),
            Self::VmmCrashed(_) => ("vmm-crashed", "fbc0c258e8204cf98f7c6ca161ec918a", 70),
            Self::KernelPanic { .. } => ("kernel-panic", "4bc97d096bbf4e64863f8f462f6ba72f", 71),
            Self::NoAgent { .. } => ("no-agent", "30199c2a3ac84600924ed404281354be", 72),
            Self::NoWorkload { .. } => ("no-workload", "85b073e894084e2aa8a30ecf8bf8e8bd", 72),
            Self::AgentFatal { .. } => ("agent-fatal", "65483d9a873c4576b06e8bf638261d29", 73),
            Self::AgentSilent { .. } => ("agent-silent", "88aed1486e62470288820e846ad019ff", 74),
            Self::Unhealthy { .. } => ("unhealthy", "d9d0b5020c584f1a9b5959f41f0ab6db", 79),
            Self::OutOfMemory => ("out-of-memory", "6bbe58d0f53342f3b0743685563a8449", 76),
            Self::RebootLoop { .. } => ("reboot-loop", "d8d027e03de140fc913080b5c7a82371", 77),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(rung) => write!(f, "stopped: {}", rung.as_past()),
            Self::Workload(exit) => write!(f, "the workload {exit}"),
            Self::Unhealthy { detail } if detail.is_empty() => {
                f.write_str("the workload is not healthy")
            }
            Self::Unhealthy { detail } => write!(f, "the workload is not healthy: {detail}"),
            Self::GuestPowerOff => f.write_str("the guest powered off"),
            Self::RebootLoop { reboots, seconds } => write!(
                f,
                "the guest rebooted {reboots} times within {seconds} s: given up"
            ),
            Self::KernelPanic { line, agent_called } => {
                write!(f, "the guest's kernel panicked: {line}")?;
                if *agent_called {
                    return Ok(());
                }
                f.write_str("; no agent had called: is kestrel the initramfs's /init?")
            }
            Self::AgentFatal { cause } => write!(f, "the agent could not go on: {cause}"),
            Self::NoAgent { seconds } => write!(
                f,
                "no agent called within {seconds} s: is kestrel the initramfs's /init?"
            ),
            Self::NoWorkload { seconds } => write!(
                f,
                "the agent did not start the workload within {seconds} s of its hello"
            ),
            Self::AgentSilent { seconds } => {
                write!(f, "the agent was silent for {seconds} s: the guest hangs")
            }
            Self::VmmMissing { cause } | Self::VmmFailed { cause } => f.write_str(cause),
            Self::VmmCrashed(exit) => write_exit(f, exit),
            Self::OutOfMemory => f.write_str(
                "the host's kernel killed the VMM: the unit's memory limit was reached, or the host had none left",
            ),
        }
    }
}

fn write_exit(f: &mut fmt::Formatter<'_>, exit: &VmmExit) -> fmt::Result {
    match exit {
        VmmExit::GuestPowerOff => f.write_str("the VMM ended with the guest's power-off"),
        VmmExit::GuestReset => f.write_str("the VMM ended with the guest's reset"),
        VmmExit::Exited {
            program,
            code,
            message,
        } => {
            write!(f, "{program} exited by itself with code {code}")?;
            match message.as_str() {
                "" => Ok(()),
                message => write!(f, ": {message}"),
            }
        }
        VmmExit::Killed { program, signal } => write!(f, "{program} was killed by signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all() -> Vec<Ended> {
        let cause = || "why".to_owned();
        vec![
            Ended::Stopped(Rung::Agent),
            Ended::Workload(WorkloadExit::new(3, 0)),
            Ended::Unhealthy { detail: cause() },
            Ended::GuestPowerOff,
            Ended::RebootLoop {
                reboots: 6,
                seconds: 60,
            },
            Ended::KernelPanic {
                line: cause(),
                agent_called: true,
            },
            Ended::AgentFatal { cause: cause() },
            Ended::NoAgent { seconds: 60 },
            Ended::NoWorkload { seconds: 30 },
            Ended::AgentSilent { seconds: 30 },
            Ended::VmmMissing { cause: cause() },
            Ended::VmmFailed { cause: cause() },
            Ended::VmmCrashed(VmmExit::Killed {
                program: "qemu",
                signal: 9,
            }),
            Ended::OutOfMemory,
        ]
    }

    #[test]
    fn each_end_has_a_name_and_a_message_id_of_its_own() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(Ended::name).collect();
        let ids: BTreeSet<_> = all.iter().map(Ended::message_id).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(ids.len(), all.len());
        for ended in all {
            assert_eq!(ended.message_id().len(), 32, "{ended:?}");
            assert!(!ended.to_string().contains('\n'), "{ended:?}");
        }
    }

    #[test]
    fn ends_that_were_wanted_exit_with_zero_and_others_do_not() {
        for ended in all() {
            let wanted = matches!(ended, Ended::Stopped(_) | Ended::GuestPowerOff);
            assert_eq!(ended.exit_code() == 0, wanted, "{ended:?}");
        }
        let done = Ended::Workload(WorkloadExit::new(0, 0));
        assert_eq!(done.exit_code(), 0);
        let killed = Ended::Workload(WorkloadExit::new(137, 9));
        assert_eq!(killed.exit_code(), 137);
        assert_eq!(killed.to_string(), "the workload was killed by signal 9");
    }

    #[test]
    fn a_workloads_code_is_never_one_that_forbids_a_restart() {
        let cases = [
            (0, 0),
            (1, 1),
            (68, 68),
            (69, 1),
            (70, 70),
            (75, 75),
            (77, 77),
            (78, 1),
            (79, 79),
            (137, 137),
            (255, 255),
        ];
        for (code, expected) in cases {
            let ended = Ended::Workload(WorkloadExit::new(code, 0));
            assert_eq!(ended.exit_code(), expected, "{code}");
            let told = format!("the workload exited with code {code}");
            assert_eq!(ended.to_string(), told);
        }
    }

    #[test]
    fn a_crash_names_program_code_and_last_words() {
        let crash = Ended::VmmCrashed(VmmExit::Exited {
            program: "qemu-system-x86_64",
            code: 1,
            message: "no space".to_owned(),
        });
        assert_eq!(
            crash.to_string(),
            "qemu-system-x86_64 exited by itself with code 1: no space"
        );
    }
}
