//! The API of another machine: a Unix socket of our own, each connection to which is one `ssh` to there.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    process::{Child, Command},
    task::JoinHandle,
};

use crate::host::SshHost;

/// What is kept of ssh's own words.
const MAX_WORDS: u64 = 4096;

/// The socket is there as long as this is.
#[derive(Debug)]
pub struct Tunnel {
    folder: TempDir,
    last_words: Arc<Mutex<Option<String>>>,
    accepting: JoinHandle<()>,
}

impl Tunnel {
    /// Opens the socket; nothing is connected yet. Only this user can reach it.
    pub fn open(host: &SshHost) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("volar-").tempdir()?;
        let listener = UnixListener::bind(socket(folder.path()))?;
        let last_words = Arc::default();
        let accepting = tokio::spawn(accept(listener, host.clone(), Arc::clone(&last_words)));
        Ok(Self {
            folder,
            last_words,
            accepting,
        })
    }

    pub fn socket(&self) -> PathBuf {
        socket(self.folder.path())
    }

    /// What `ssh` said last, if it failed before anything came through it.
    pub fn last_words(&self) -> Option<String> {
        let words = self.last_words.lock();
        words.ok().and_then(|words| words.clone())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("api.sock")
}

async fn accept(listener: UnixListener, host: SshHost, words: Arc<Mutex<Option<String>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (host, words) = (host.clone(), Arc::clone(&words));
        tokio::spawn(async move {
            let mut stream = stream;
            let failed = match start(&host) {
                Ok(ssh) => carry(&mut stream, ssh).await,
                Err(error) => Some(format!("cannot start ssh: {error}")),
            };
            // Before the stream is closed: whoever waits on it then asks why.
            if let (Some(failed), Ok(mut words)) = (failed, words.lock()) {
                *words = Some(failed);
            }
            drop(stream);
        });
    }
}

/// In a process group of its own: a Ctrl-C at the terminal is for the program in the guest.
fn start(host: &SshHost) -> io::Result<Child> {
    Command::new("ssh")
        .args(host.arguments())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Carries bytes until the other side is done; gives ssh's words if nothing came and it failed.
async fn carry(stream: &mut UnixStream, mut ssh: Child) -> Option<String> {
    let (Some(mut input), Some(mut output), Some(errors)) =
        (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take())
    else {
        return None;
    };
    let words = tokio::spawn(read_words(errors));
    let (mut from, mut to) = stream.split();
    let inward = async {
        let carried = tokio::io::copy(&mut from, &mut input).await;
        drop(input);
        carried
    };
    let outward = async {
        // A client that is gone is no failure of ssh.
        tokio::io::copy(&mut output, &mut to).await.unwrap_or(1)
    };
    tokio::pin!(inward, outward);
    let carried = tokio::select! {
        carried = &mut outward => carried,
        // The client sends no more; what is still to come comes.
        _ = &mut inward => outward.await,
    };
    if carried > 0 {
        return None;
    }
    let status = ssh.wait().await.ok()?;
    let words = words.await.unwrap_or_default();
    (!status.success()).then(|| {
        if words.is_empty() {
            format!("ssh ended with {status}")
        } else {
            words
        }
    })
}

/// The last line is the one that says why.
async fn read_words(mut errors: tokio::process::ChildStderr) -> String {
    let mut words = Vec::new();
    let _ = (&mut errors).take(MAX_WORDS).read_to_end(&mut words).await;
    // A pipe that nobody reads would hold it up.
    let _ = tokio::io::copy(&mut errors, &mut tokio::io::sink()).await;
    let words = String::from_utf8_lossy(&words);
    let last = words.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or_default().trim().to_owned()
}
