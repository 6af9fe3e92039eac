//! `vmd --reload NAME`: asks the vmd that runs to execute its new binary, and waits for the new one's word.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::sockets::CONTROL;

/// What is asked for.
pub(super) const RELOAD: &[u8] = b"reload\n";
/// The answer's beginning when it is done; else the whole answer says why not.
const DONE: &str = "ok";
/// Copies that run are waited for, and a new vmd that hangs is not.
const PATIENCE: Duration = Duration::from_secs(120);
const LONGEST_ANSWER: u64 = 64 * 1024;

/// Why nobody took over.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("cannot reach the VM's vmd at {}", path.display())]
    Reach { path: PathBuf, source: io::Error },
    #[error("the VM's vmd did not answer within {} s", PATIENCE.as_secs())]
    Silent(#[source] io::Error),
    #[error("the VM's vmd ended while it was reloaded: see its journal")]
    Ended,
    #[error("the VM's vmd was not reloaded, and goes on as it was: {0}")]
    Refused(String),
}

/// Has the vmd reloaded whose sockets are in `folder`.
///
/// # Errors
/// It was not; and why.
pub fn request(folder: &Path) -> Result<(), RequestError> {
    let path = folder.join(CONTROL);
    let reach = |source| RequestError::Reach {
        path: path.clone(),
        source,
    };
    let mut vmd = UnixStream::connect(&path).map_err(reach)?;
    vmd.set_read_timeout(Some(PATIENCE)).map_err(reach)?;
    vmd.write_all(RELOAD).map_err(reach)?;
    let mut answer = Vec::new();
    let read = vmd.take(LONGEST_ANSWER).read_to_end(&mut answer);
    read.map_err(RequestError::Silent)?;
    match String::from_utf8_lossy(&answer).trim() {
        DONE => Ok(()),
        "" => Err(RequestError::Ended),
        why => Err(RequestError::Refused(why.to_owned())),
    }
}

/// Tells who asked that it is done.
pub(super) fn answer_done(mut asker: UnixStream) {
    // Whoever asked may be gone.
    let _ = writeln!(asker, "{DONE}");
}

/// Tells who asked why it is not done.
pub(super) fn answer_refused(mut asker: &UnixStream, why: &str) {
    let _ = writeln!(asker, "{why}");
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    fn asked(answer: &'static str) -> Result<(), RequestError> {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(CONTROL)).unwrap();
        let vmd = thread::spawn(move || {
            let (mut asker, _) = listener.accept().unwrap();
            let mut word = [0; RELOAD.len()];
            asker.read_exact(&mut word).unwrap();
            assert_eq!(word, RELOAD);
            asker.write_all(answer.as_bytes()).unwrap();
        });
        let answer = request(folder.path());
        vmd.join().unwrap();
        answer
    }

    #[test]
    fn the_answer_is_waited_for_and_told() {
        asked("ok\n").unwrap();
        let refused = asked("it is being stopped\n").unwrap_err().to_string();
        assert!(refused.ends_with("it is being stopped"), "{refused}");
        assert!(matches!(asked("").unwrap_err(), RequestError::Ended));
        let nobody = request(Path::new("/nowhere")).unwrap_err();
        assert!(matches!(nobody, RequestError::Reach { .. }));
    }
}
