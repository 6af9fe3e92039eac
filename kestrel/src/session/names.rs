//! Names of hosts, by the guest's own `/etc/hosts` and name servers. The C library's way would want files of the image that
//! need not be there, and that a static program cannot load.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};

use crate::files::read_bounded;

const LONGEST_FILE: u64 = 256 * 1024;
/// As the C library's defaults are: so many servers, and so long for each.
const MOST_SERVERS: usize = 3;
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const DNS_PORT: u16 = 53;
const MOST_BYTES: usize = 4096;
const A: u16 = 1;
const AAAA: u16 = 28;
const IN: u16 = 1;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("'{0}' is no name of a host")]
    Invalid(String),
    #[error("no name server knows '{0}'")]
    Unknown(String),
    #[error("no name server tells where '{0}' is: {1}")]
    Silent(String, io::Error),
}

/// The addresses of `host`, which may be one itself.
///
/// # Errors
/// Nobody knows it.
pub async fn find(host: &str, root: &Path) -> Result<Vec<IpAddr>, NameError> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    let question =
        encode(host).ok_or_else(|| NameError::Invalid(host.escape_debug().to_string()))?;
    // What cannot be read says nothing.
    let read = |name: &str| {
        let bytes = read_bounded(&root.join("etc").join(name), LONGEST_FILE);
        let bytes = bytes.ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let known = in_hosts(&read("hosts"), host);
    if !known.is_empty() {
        return Ok(known);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let servers = servers(&read("resolv.conf"));
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for server in servers {
        match ask(server, &question).await {
            Ok(addresses) if addresses.is_empty() => {
                return Err(NameError::Unknown(host.to_owned()));
            }
            Ok(addresses) => return Ok(addresses),
            Err(error) => last = error,
        }
    }
    Err(NameError::Silent(host.to_owned(), last))
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|name| name.eq_ignore_ascii_case(host))
                .then_some(address)
        })
        .collect()
}

fn servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
        })
        .take(MOST_SERVERS)
        .collect()
}

/// The name in a question's form.
fn encode(host: &str) -> Option<Vec<u8>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let mut name = Vec::new();
    for label in host.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..64).contains(length))?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.bytes().all(is_plain) {
            return None;
        }
        name.push(length);
        name.extend(label.bytes());
    }
    name.push(0);
    (name.len() <= 255).then_some(name)
}

/// The addresses by one server, IPv4 first; none: it knows that there are none.
async fn ask(server: IpAddr, name: &[u8]) -> io::Result<Vec<IpAddr>> {
    let any: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own and no other's answer: the socket is connected.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(SocketAddr::new(server, DNS_PORT)).await?;
    let mut addresses = Vec::new();
    for kind in [A, AAAA] {
        // Its number tells the two questions of this socket apart.
        socket.send(&query(kind, name, kind)).await?;
        let answer = timeout(ANSWER_WITHIN, answer(&socket, kind, name, kind)).await;
        addresses.extend(answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?);
    }
    Ok(addresses)
}

async fn answer(socket: &UdpSocket, id: u16, name: &[u8], kind: u16) -> io::Result<Vec<IpAddr>> {
    let mut buffer = vec![0; MOST_BYTES];
    loop {
        let count = socket.recv(&mut buffer).await?;
        if let Some(addresses) = parse(&buffer[..count], id, name, kind) {
            return Ok(addresses);
        }
    }
}

fn query(id: u16, name: &[u8], kind: u16) -> Vec<u8> {
    // Recursion desired; one question.
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(name);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(IN.to_be_bytes());
    bytes
}

/// The addresses of an answer to that question; `None`: it is none.
fn parse(bytes: &[u8], id: u16, name: &[u8], kind: u16) -> Option<Vec<IpAddr>> {
    let head = bytes.first_chunk::<12>()?;
    let number = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let is_answer = head[2] & 0x80 != 0 && number(0)? == id && number(4)? == 1;
    let question = bytes.get(12..12 + name.len())?;
    if !is_answer || !question.eq_ignore_ascii_case(name) {
        return None;
    }
    let mut at = 12 + name.len() + 4;
    let mut addresses = Vec::new();
    for _ in 0..number(6)? {
        at = skip_name(bytes, at)?;
        let (found, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = bytes.get(at + 10..at + 10 + length)?;
        match found {
            A if kind == A => addresses.push(IpAddr::from(*data.first_chunk::<4>()?)),
            AAAA if kind == AAAA => addresses.push(IpAddr::from(*data.first_chunk::<16>()?)),
            _ => {}
        }
        at += 10 + length;
    }
    Some(addresses)
}

/// Behind a name, which ends with an empty label or with a pointer.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_found_in_the_guest_s_files() {
        let hosts = "127.0.0.1 localhost # me\n10.0.0.7\tdb db.local\n::1 localhost\nx y\n";
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(in_hosts(hosts, "DB.local"), [address("10.0.0.7")]);
        assert_eq!(in_hosts(hosts, "localhost").len(), 2);
        assert!(in_hosts(hosts, "me").is_empty());
        let resolv = "search x\nnameserver 1.1.1.1\nnameserver nonsense\nnameserver ::1\n";
        assert_eq!(servers(resolv), [address("1.1.1.1"), address("::1")]);
    }

    #[test]
    fn a_name_is_encoded_or_refused() {
        assert_eq!(encode("a.bc."), Some(b"\x01a\x02bc\0".to_vec()));
        for name in [
            "",
            ".",
            "a..b",
            "a b",
            "ä",
            &"x".repeat(64),
            &"x.".repeat(200),
        ] {
            assert_eq!(encode(name), None, "{name}");
        }
    }

    #[test]
    fn addresses_are_read_from_an_answer() {
        let name = encode("web").unwrap();
        let mut bytes = query(7, &name, A);
        bytes[2] |= 0x80;
        bytes[7] = 2;
        // A name elsewhere first, then its address.
        bytes.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x09\0\x02\xc0\x0c");
        bytes.extend(b"\x03web\0\0\x01\0\x01\0\0\0\x09\0\x04\x0a\x01\x02\x03");
        let expected = vec![IpAddr::from([10, 1, 2, 3])];
        assert_eq!(parse(&bytes, 7, &name, A), Some(expected));
        assert_eq!(parse(&bytes, 8, &name, A), None);
        assert_eq!(parse(&bytes, 7, &encode("wer").unwrap(), A), None);
        assert_eq!(parse(&bytes[..bytes.len() - 1], 7, &name, A), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_read(bytes in prop::collection::vec(any::<u8>(), 0..100), tail in prop::collection::vec(any::<u8>(), 0..60)) {
            let name = encode("a").unwrap();
            let _ = parse(&bytes, 0, &name, A);
            let mut answer = query(0, &name, A);
            answer[2] |= 0x80;
            answer[7] = 9;
            answer.extend(tail);
            let _ = parse(&answer, 0, &name, A);
        }
    }
}
