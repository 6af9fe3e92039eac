//! A bare vsock stream into the guest. The first byte of a connection tells what it is for:
//! `e`: everything that follows comes back; `s` and 8 bytes (little-endian): so many bytes that follow are dropped, and the
//! last is answered with one; `f` and 8 bytes: the same, but they are written to a file that has no name; `g` and 8 bytes: so
//! many are sent.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::ExitCode,
    thread,
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};

/// Known to `bench-exec` too.
const PORT: u32 = 5000;
const ANY: u32 = u32::MAX;
/// As much as a frame of a session.
const CHUNK: usize = 64 * 1024;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let listener = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, PORT))?;
    listen(&listener, Backlog::new(16)?)?;
    loop {
        let connection = accept(&listener)?;
        thread::spawn(move || {
            if let Err(error) = converse(connection) {
                eprintln!("echo: {error}");
            }
        });
    }
}

fn accept(listener: &OwnedFd) -> io::Result<File> {
    let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made it, and nobody else knows it.
    #[allow(unsafe_code, reason = "nix gives a bare number")]
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    Ok(accepted.into())
}

fn converse(mut connection: File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    connection.read_exact(&mut buffer[..1])?;
    match buffer[0] {
        b'e' => loop {
            let count = connection.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            connection.write_all(&buffer[..count])?;
        },
        b's' => {
            let mut left = count(&mut connection)?;
            while left > 0 {
                match connection.read(&mut buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => left = left.saturating_sub(read as u64),
                }
            }
            connection.write_all(b".")
        }
        b'f' => {
            let mut left = count(&mut connection)?;
            let path = "/tmp/vsock-echo";
            let mut file = File::create(path)?;
            std::fs::remove_file(path)?;
            while left > 0 {
                match connection.read(&mut buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => {
                        file.write_all(&buffer[..read])?;
                        left = left.saturating_sub(read as u64);
                    }
                }
            }
            connection.write_all(b".")
        }
        b'g' => {
            let mut left = count(&mut connection)?;
            while left > 0 {
                let piece = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                connection.write_all(&buffer[..piece])?;
                left -= piece as u64;
            }
            Ok(())
        }
        other => Err(io::Error::other(format!("what is '{other}'?"))),
    }
}

fn count(connection: &mut File) -> io::Result<u64> {
    let mut count = [0; 8];
    connection.read_exact(&mut count)?;
    Ok(u64::from_le_bytes(count))
}
