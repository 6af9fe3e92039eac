//! Where the API is, as `--host` says it.

use std::{fmt, path::PathBuf, str::FromStr};

use url::Url;

/// Where the API is: a Unix socket of this machine, or of another one that ssh reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Unix(PathBuf),
    Ssh(SshHost),
}

/// A machine that `ssh` reaches, and whom it logs in as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshHost {
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
}

impl SshHost {
    /// What `ssh` is started with: it asks nothing, as the terminal is the guest's, and connects its own
    /// input and output with the API over there.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["-T", "-o", "BatchMode=yes"].map(str::to_owned).into();
        if let Some(user) = &self.user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        let command = ["--", &self.host, "volar", "dial-stdio"].map(str::to_owned);
        arguments.extend(command);
        arguments
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Ssh(host) => write!(f, "{host}"),
        }
    }
}

impl fmt::Display for SshHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        write!(f, "{}", self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Err(
                "this version of Volant is reached over its Unix socket alone; write \
                 unix:///run/volant/api.sock, or ssh://[USER@]HOST for another machine's"
                    .to_owned(),
            );
        }
        if text.starts_with("ssh://") {
            return ssh(text).map(Self::Ssh);
        }
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            _ => {
                Err("it is neither unix:// and an absolute path, nor ssh://[USER@]HOST".to_owned())
            }
        }
    }
}

fn ssh(text: &str) -> Result<SshHost, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // ssh would take it for an option.
    if host.is_empty() || host.starts_with('-') || url.username().starts_with('-') {
        return Err("there is no host in it; write ssh://[USER@]HOST[:PORT]".to_owned());
    }
    if url.password().is_some() {
        return Err("ssh takes no password from a URL; use a key".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("nothing follows the host; write ssh://[USER@]HOST[:PORT]".to_owned());
    }
    let user = Some(url.username()).filter(|user| !user.is_empty());
    Ok(SshHost {
        user: user.map(str::to_owned),
        host: host.to_owned(),
        port: url.port(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_unix_socket_or_one_behind_ssh() {
        assert_eq!("unix:///a/b".parse(), Ok(Host::Unix("/a/b".into())));
        for (text, arguments) in [
            ("ssh://h", "-T -o BatchMode=yes -- h volar dial-stdio"),
            (
                "ssh://me@h:2222",
                "-T -o BatchMode=yes -l me -p 2222 -- h volar dial-stdio",
            ),
            (
                "ssh://[::1]/",
                "-T -o BatchMode=yes -- ::1 volar dial-stdio",
            ),
        ] {
            let Ok(Host::Ssh(host)) = text.parse() else {
                panic!("{text}");
            };
            assert_eq!(host.arguments().join(" "), arguments);
        }
    }

    #[test]
    fn other_hosts_are_refused() {
        for (text, expected) in [
            ("https://a", "Unix socket alone"),
            ("http://a", "Unix socket alone"),
            ("unix://a", "absolute path"),
            ("/run/x", "absolute path"),
            ("", "absolute path"),
            ("ssh://", "host"),
            ("ssh://-oProxyCommand=x", "host"),
            ("ssh://-l@h", "no host in it"),
            ("ssh://a:b@h", "password"),
            ("ssh://h/path", "nothing follows"),
        ] {
            let error = text.parse::<Host>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
