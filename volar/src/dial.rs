//! `volar dial-stdio`: the API's socket as standard input and output, for a volar at the other end of ssh.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    failure::Failure,
    host::Host,
    stdio::{self, Out},
};

const CHUNK: usize = 64 * 1024;

pub async fn run(host: &Host) -> Result<(), Failure> {
    let Host::Unix(path) = host else {
        let why = "dial-stdio connects with a socket of this machine alone";
        return Err(Failure::Usage(why.to_owned()));
    };
    let unreachable = |source| Failure::Unreachable {
        host: host.to_string(),
        source,
    };
    let stream = UnixStream::connect(path).await.map_err(unreachable)?;
    let (mut from, mut to) = stream.into_split();
    let (mut input, mut out) = (stdio::input()?, Out::stdout()?);
    let inward = async {
        while let Some(chunk) = input.recv().await {
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
        // The other side may still say something.
        let _ = to.shutdown().await;
        std::future::pending::<()>().await;
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or(0);
            if read == 0 || out.write(buffer[..read].to_vec().into()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
    out.finish().await
}
