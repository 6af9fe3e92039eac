//! A network of one's own for a test: a thread in a fresh network namespace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
};

use ipamd::{Ipam, network::Network};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{geteuid, gettid},
};
use serde_json::Value;
use volant_service::Idle;
use volant_spec::Config;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace that goes with it.
pub struct Host {
    jobs: mpsc::Sender<Job>,
    pub netns: PathBuf,
}

impl Host {
    /// None, aloud, without the privilege to make one.
    pub fn new() -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: a network namespace needs root");
            return None;
        }
        let (jobs, todo) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(PathBuf::from(format!(
                "/proc/{}/task/{}/ns/net",
                std::process::id(),
                gettid()
            )))
            .unwrap();
            for job in todo {
                job();
            }
        });
        let netns = told.recv().unwrap();
        Some(Self { jobs, netns })
    }

    /// Runs something there.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs
            .send(Box::new(move || {
                let _ = tell.send(job());
            }))
            .unwrap();
        told.recv().expect("the test's thread panicked, see above")
    }

    /// Runs a command there that must succeed; its output.
    pub fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(move || sh(&script))
    }

    /// Runs something asynchronous there.
    pub fn block_on<F, T>(&self, job: impl FnOnce() -> F + Send + 'static) -> T
    where
        F: Future<Output = T>,
        T: Send + 'static,
    {
        self.run(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(job())
        })
    }
}

/// A command in the caller's namespace that must succeed; its output.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `ip -j -d link` says of a link; null if there is none.
pub fn link(name: &str) -> Value {
    let links: Value = serde_json::from_str(&sh("ip -j -d link")).unwrap();
    links
        .as_array()
        .unwrap()
        .iter()
        .find(|link| link["ifname"] == name)
        .cloned()
        .unwrap_or_default()
}

/// The IPv4 addresses of a link.
pub fn addresses(name: &str) -> Vec<String> {
    sh(&format!("ip -4 -o addr show {name}"))
        .lines()
        .map(|line| line.split_whitespace().nth(3).unwrap().to_owned())
        .collect()
}

pub fn network(config: &str) -> Network {
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(path.path(), config).unwrap();
    Network::open(Config::load(path.path()).unwrap().network).unwrap()
}

/// Call it within a runtime.
pub fn ipam(state: &Path, config: &str) -> Ipam {
    Ipam::open(network(config), state, Idle::new()).unwrap()
}
