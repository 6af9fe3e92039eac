//! As much of HTTP as a health check takes: a GET, and the status of its answer. What comes after the first line is not read.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::config::HttpProbe;

/// The most of an answer that is read.
const LONGEST_LINE: usize = 1024;

/// Asks by `connection`; well is a status of 200 to 399.
pub async fn ask(
    mut connection: impl AsyncRead + AsyncWrite + Unpin,
    probe: &HttpProbe,
) -> Result<(), String> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: kestrel\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        probe.path, probe.authority
    );
    connection
        .write_all(request.as_bytes())
        .await
        .map_err(|error| format!("cannot ask: {error}"))?;
    let mut answer = Vec::new();
    let mut lines = connection.take(LONGEST_LINE as u64);
    loop {
        match lines.read_buf(&mut answer).await {
            Ok(0) => break,
            Ok(_) if answer.contains(&b'\n') => break,
            Ok(_) => {}
            Err(error) => return Err(format!("cannot read the answer: {error}")),
        }
    }
    match status(&answer) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("the answer is {status}")),
        None => Err("the answer is not HTTP".to_owned()),
    }
}

/// Of `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line.strip_prefix(b"HTTP/1.")?).ok()?;
    let digits = line.split_ascii_whitespace().nth(1)?;
    (digits.len() == 3).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &[u8]) -> (Result<(), String>, String) {
        let probe = HttpProbe {
            host: "localhost".into(),
            port: 8080,
            authority: "localhost:8080".into(),
            path: "/healthz?a".into(),
        };
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let server = async {
            let mut request = vec![0; 4096];
            let count = theirs.read(&mut request).await.unwrap();
            theirs.write_all(answer).await.unwrap();
            drop(theirs);
            String::from_utf8_lossy(&request[..count]).into_owned()
        };
        tokio::join!(ask(ours, &probe), server)
    }

    #[tokio::test]
    async fn the_status_is_what_counts() {
        let (result, request) = answered(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(result, Ok(()));
        assert!(
            request.starts_with("GET /healthz?a HTTP/1.1\r\nHost: localhost:8080\r\n"),
            "{request}"
        );
        assert!(request.ends_with("Connection: close\r\n\r\n"), "{request}");
        let not_http = "the answer is not HTTP";
        for (answer, expected) in [
            (&b"HTTP/1.0 200\n"[..], Ok(())),
            (b"HTTP/1.1 302 Found\r\n", Ok(())),
            (b"HTTP/1.1 404 Not Found\r\n", Err("the answer is 404")),
            (b"HTTP/1.1 500 \r\n", Err("the answer is 500")),
            (b"HTTP/1.1 100 Continue\r\n\r\n", Err("the answer is 100")),
            (b"HTTP/2 200\r\n", Err(not_http)),
            (b"HTTP/1.1 2000\r\n", Err(not_http)),
            (b"220 smtp\r\n", Err(not_http)),
            (b"", Err(not_http)),
            (&[b'x'; 4096], Err(not_http)),
        ] {
            let (result, _) = answered(answer).await;
            assert_eq!(result, expected.map_err(str::to_owned));
        }
    }
}
