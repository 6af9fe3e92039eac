//! Another program becomes PID 1: all is prepared for it, and this agent goes on as a service beside it.
//!
//! ```text
//! PID 1: kestrel ── root, network, /etc, volumes, secrets, /run/kestrel ──▶ exec: the init
//!                                              systemd: starts kestrel.service ──▶ kestrel --service
//!                                  another: kestrel --service, begun before it
//! ```

mod files;
mod power;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{mount::MsFlags, unistd::setsid};
use prost::Message as _;
use volant_proto::agent::v1::{HelloResponse, RunConfig};

pub use self::power::{Kind, PowerOff, going_down};
use crate::{
    config::Config,
    files::read_bounded,
    kernel::Kernel,
    mounts::{Mount, MountError, TAME, mount_one},
    workload::WorkloadError,
};

/// What the service mode is called by.
pub const SERVICE: &str = "--service";
/// Below the root; a tmpfs, which root alone may look into.
const FOLDER: &str = "run/kestrel";
const AGENT: &str = "run/kestrel/kestrel";
const ANSWER: &str = "run/kestrel/hello";
const LONGEST_ANSWER: u64 = 4 * 1024 * 1024;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is no init.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("it cannot be found")]
    Absent(#[source] io::Error),
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot make what the workload needs")]
    Dirs(#[source] WorkloadError),
    #[error("cannot start the agent beside it")]
    Agent(#[source] io::Error),
    #[error("cannot execute it")]
    Execute(#[source] io::Error),
}

/// Why a service does not know what it is for.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("cannot read what was left for it in /{ANSWER}")]
    Read(#[source] crate::files::ReadError),
    #[error("there is no /{ANSWER}: this is no guest whose init another program is")]
    Absent,
    #[error("what was left for it in /{ANSWER} makes no sense")]
    Decode(#[source] prost::DecodeError),
}

/// What is left to do.
#[derive(Debug)]
pub struct Plan {
    program: PathBuf,
    env: BTreeMap<String, String>,
    /// The agent to start first; `None`: the init starts it.
    agent: Option<PathBuf>,
}

/// Mounts a tmpfs on `/run`, where there is none: what is there must neither be kept nor be on a disk.
///
/// # Errors
/// It cannot be mounted.
pub fn mount_run(kernel: &impl Kernel) -> Result<(), MountError> {
    if !fs::metadata("/run").is_ok_and(|meta| meta.is_dir()) {
        kernel
            .make_mount_point("/run")
            .map_err(|source| MountError::MakeDir {
                target: "/run".to_owned(),
                source,
            })?;
    }
    let flags = TAME.union(MsFlags::MS_STRICTATIME);
    mount_one(kernel, &Mount::new("tmpfs", "/run", flags, "mode=0755"))
}

/// Puts below `root` what the agent needs to go on, and what the init needs to start it.
///
/// # Errors
/// The init is not there, or something cannot be written.
pub fn prepare(
    root: &Path,
    init: &Path,
    answer: RunConfig,
    token: Vec<u8>,
    config: &Config,
) -> Result<Plan, InitError> {
    let program = root.join(init.strip_prefix("/").unwrap_or(init));
    let kind = Kind::of(&program).map_err(InitError::Absent)?;
    let answer = HelloResponse {
        run_config: Some(without_secrets(answer)),
        token,
    };
    files::write_agent(root, &answer.encode_to_vec())?;
    let agent = match kind {
        Kind::Systemd => {
            files::write_units(root, config.network.as_ref())?;
            None
        }
        Kind::Other => Some(root.join(AGENT)),
    };
    Ok(Plan {
        program: init.to_owned(),
        env: config.workload.env.clone(),
        agent,
    })
}

/// The files are there already, and an init's environment is no place for them.
fn without_secrets(mut config: RunConfig) -> RunConfig {
    config.secrets.clear();
    config.time_unix_ns = 0;
    config
}

impl Plan {
    /// Becomes the init. Returns only when that failed.
    pub fn execute(&self, kernel: &impl Kernel) -> InitError {
        if let Some(agent) = &self.agent
            && let Err(error) = spawn(agent)
        {
            return InitError::Agent(error);
        }
        let mut env = self.env.clone();
        for (name, value) in [("PATH", PATH), ("HOME", "/"), ("TERM", "linux")] {
            env.entry(name.to_owned())
                .or_insert_with(|| value.to_owned());
        }
        InitError::Execute(kernel.become_program(&self.program, &env))
    }
}

/// Starts the agent beside: a child of PID 1, whoever that is then.
fn spawn(agent: &Path) -> io::Result<()> {
    let mut command = Command::new(agent);
    command
        .arg(SERVICE)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null());
    // SAFETY: one system call, which is async-signal-safe.
    #[allow(unsafe_code, reason = "a session can only be begun in the child")]
    unsafe {
        command.pre_exec(|| Ok(setsid().map(drop)?));
    }
    command.spawn().map(drop)
}

/// What PID 1 left for the service below `root`: the host's answer to its hello.
///
/// # Errors
/// It left nothing, or nonsense.
pub fn answer(root: &Path) -> Result<HelloResponse, AnswerError> {
    let bytes = read_bounded(&root.join(ANSWER), LONGEST_ANSWER)
        .map_err(AnswerError::Read)?
        .ok_or(AnswerError::Absent)?;
    HelloResponse::decode(bytes.as_slice()).map_err(AnswerError::Decode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use volant_proto::agent::v1;

    use super::*;
    use crate::fake::FakeKernel;

    fn wire() -> RunConfig {
        RunConfig {
            hostname: "web".into(),
            init: "/sbin/init".into(),
            network: Some(v1::NetworkConfig {
                mac: "52:54:00:0a:0b:0c".into(),
                addresses: vec!["10.0.0.2/24".into()],
                gateways: vec!["10.0.0.1".into()],
                dns: vec!["10.0.0.1".into()],
            }),
            secrets: vec![v1::Secret {
                name: "key".into(),
                value: b"hunter2".to_vec(),
                env: String::new(),
            }],
            ..RunConfig::default()
        }
    }

    fn systemd_root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("lib/systemd")).unwrap();
        fs::create_dir(path("sbin")).unwrap();
        fs::write(path("lib/systemd/systemd"), "").unwrap();
        symlink("../lib/systemd/systemd", path("sbin/init")).unwrap();
        root
    }

    #[test]
    fn systemd_finds_the_agent_s_unit_and_the_agent_what_it_is_told() {
        let root = systemd_root();
        let path = |name: &str| root.path().join(name);
        let config = Config::try_from(wire()).unwrap();
        let init = Path::new("/sbin/init");
        let plan = prepare(root.path(), init, wire(), b"token".to_vec(), &config).unwrap();
        let unit = fs::read_to_string(path("run/systemd/system/kestrel.service")).unwrap();
        assert!(unit.contains("ExecStart=/run/kestrel/kestrel --service\n"));
        let wanted = path("run/systemd/system/sysinit.target.wants/kestrel.service");
        assert_eq!(fs::read_to_string(wanted).unwrap(), unit);
        for (name, mode) in [(FOLDER, 0o700), (AGENT, 0o700), (ANSWER, 0o600)] {
            assert_eq!(
                fs::metadata(path(name)).unwrap().mode() & 0o777,
                mode,
                "{name}"
            );
        }
        let left = answer(root.path()).unwrap();
        assert_eq!(left.token, b"token");
        let left = left.run_config.unwrap();
        assert_eq!((left.hostname.as_str(), left.secrets.len()), ("web", 0));
        let kernel = FakeKernel::default();
        let error = plan.execute(&kernel);
        assert!(matches!(error, InitError::Execute(_)), "{error}");
        assert_eq!(kernel.calls(), ["become /sbin/init"]);
    }

    #[test]
    fn an_init_that_is_not_there_is_told_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let config = Config::try_from(wire()).unwrap();
        let error = prepare(
            root.path(),
            Path::new("/sbin/init"),
            wire(),
            vec![],
            &config,
        );
        assert!(matches!(error, Err(InitError::Absent(_))));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(matches!(answer(root.path()), Err(AnswerError::Absent)));
        fs::create_dir_all(root.path().join(FOLDER)).unwrap();
        fs::write(root.path().join(ANSWER), b"\xff\xff").unwrap();
        assert!(matches!(answer(root.path()), Err(AnswerError::Decode(_))));
    }
}
