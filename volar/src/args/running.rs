//! Commands on a VM that runs: what can be typed.

use std::{net::IpAddr, str::FromStr};

use volant_spec::Name;

use super::vms::duration;

const EXEC: &str = "\
Standard input goes to the program when it is no terminal, or with -i or -t. SIGINT, SIGTERM, SIGHUP and SIGQUIT go to the
program; with -t the keys are its own. The exit code is the program's, or 128 + N when signal N ended it; 126 if it
cannot be run, 127 if it is not there, 125 if volar or Volant failed.

  volar vms exec web -- ls -l /etc
  volar vms exec -it --user www-data --env TERM=xterm web -- sh
  tar c . | volar vms exec web -- tar x -C /srv";

#[derive(Debug, clap::Args)]
#[command(after_help = EXEC)]
pub struct Exec {
    pub name: Name,
    /// Gives the program a terminal: this one
    #[arg(short, long)]
    pub tty: bool,
    /// Gives the program what is typed here
    #[arg(short, long)]
    pub interactive: bool,
    /// Sets a variable for the program, over the workload's
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Who runs it: USER or USER:GROUP [default: root]
    #[arg(short, long)]
    pub user: Option<String>,
    /// Where it runs: an absolute path [default: the workload's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Lets it run on by itself; its output goes to the VM's log
    #[arg(short, long, conflicts_with_all = ["tty", "interactive"])]
    pub detach: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Shell {
    pub name: Name,
    /// Whose shell: USER or USER:GROUP [default: root]
    #[arg(short, long)]
    pub user: Option<String>,
}

const COPY: &str = "\
One of the two is NAME:/PATH, in a VM. A folder is copied into a folder that is there, or becomes the one that is not;
SRC/. is what is in a folder. Links stay links, files get new owners: root in a VM, you here. - is a tar archive.

  volar vms cp site.conf web:/etc/nginx/conf.d/
  volar vms cp web:/var/log/nginx ./logs
  volar vms cp web:/etc - | tar t";

#[derive(Debug, clap::Args)]
#[command(after_help = COPY)]
pub struct Copy {
    /// What is copied
    #[arg(value_name = "[NAME:]SRC|-")]
    pub from: String,
    /// Where it goes
    #[arg(value_name = "[NAME:]DST|-")]
    pub to: String,
    /// If SRC is a symbolic link, copies what it leads to
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Keeps owners and groups, by number
    #[arg(short, long)]
    pub archive: bool,
}

#[derive(Debug, clap::Args)]
pub struct Logs {
    pub name: Name,
    /// Goes on with what is said from now on, across restarts, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// From when on: 10m ago, or 2026-01-02T03:04:05Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<String>,
    /// Until when: 10m ago, or 2026-01-02T03:04:05Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<String>,
    /// So many lines, the last ones
    #[arg(short = 'n', long, value_name = "N|all", default_value = "all", value_parser = tail)]
    pub tail: Tail,
    /// The serial console's output alone
    #[arg(long, conflicts_with = "source")]
    pub console: bool,
    /// From these alone: stdout, stderr, agent, console, vmd, unit [default: all but console]
    #[arg(long, value_delimiter = ',', value_parser = ["stdout", "stderr", "agent", "console", "vmd", "unit"])]
    pub source: Vec<String>,
    /// Begins each line with its time
    #[arg(short, long)]
    pub timestamps: bool,
}

/// How many lines of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    All,
    Last(u64),
}

#[derive(Debug, clap::Args)]
pub struct Console {
    pub name: Name,
    /// Looks on, and types nothing
    #[arg(long, conflicts_with = "steal")]
    pub read_only: bool,
    /// Takes the keyboard from whoever has it
    #[arg(long)]
    pub steal: bool,
    /// The key that detaches: ctrl-A to ctrl-], or none
    #[arg(long, value_name = "KEY", default_value = "ctrl-]")]
    pub escape: Escape,
    /// How much of what was said before is shown, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
    pub scrollback: u32,
    /// Shows what was said before, and ends
    #[arg(long)]
    pub no_follow: bool,
}

/// The key that detaches from a console; its byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Escape(pub Option<u8>);

const FORWARD: &str = "\
  volar vms forward web 8080:80            127.0.0.1:8080 here is port 80 of web
  volar vms forward web 0:80               a free port, which is told
  volar vms forward web 0.0.0.0:8080:80    reachable from other machines
  volar vms forward web 5432:db.lan:5432   what web reaches as db.lan:5432";

#[derive(Debug, clap::Args)]
#[command(after_help = FORWARD)]
pub struct Forward {
    pub name: Name,
    /// A port here, and one there
    #[arg(required = true, value_name = "[BIND:]LOCAL:[HOST:]PORT")]
    pub ports: Vec<Spec>,
}

/// A port here, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub bind: IpAddr,
    pub local: u16,
    /// Empty: the guest itself.
    pub host: String,
    pub port: u16,
}

#[derive(Debug, clap::Args)]
pub struct Top {
    #[arg(value_name = "NAME")]
    pub names: Vec<Name>,
    /// So many processes of each VM, the busiest first [default: 10 of one VM, 0 of several]
    #[arg(short, long, value_name = "N", num_args = 0..=1, default_missing_value = "20")]
    pub processes: Option<u32>,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

#[derive(Debug, clap::Args)]
pub struct Stats {
    #[arg(value_name = "NAME")]
    pub names: Vec<Name>,
    /// Once, and not again and again
    #[arg(long)]
    pub no_stream: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

#[derive(Debug, clap::Args)]
pub struct Events {
    /// Of this VM alone
    pub name: Option<Name>,
}

/// `KEY=VALUE`; KEY alone takes its value from the environment here.
pub fn variable(text: &str) -> Result<(String, String), String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => match std::env::var(text) {
            Ok(value) => (text, value),
            Err(_) => return Err("it is not KEY=VALUE, and no variable here either".to_owned()),
        },
    };
    if key.is_empty() {
        return Err("there is no name before '='".to_owned());
    }
    Ok((key.to_owned(), value))
}

fn tail(text: &str) -> Result<Tail, String> {
    if text == "all" {
        return Ok(Tail::All);
    }
    text.parse()
        .map(Tail::Last)
        .map_err(|_| "it is neither a number nor 'all'".to_owned())
}

/// As the API has it: a time, or `-` and how long ago.
fn moment(text: &str) -> Result<String, String> {
    // A date begins with its year and a dash.
    if text.contains('-') && text.contains(['T', 't', ' ']) {
        return Ok(text.to_owned());
    }
    duration(text)
        .map(|ago| format!("-{}s", ago.as_secs()))
        .map_err(|_| {
            "it is neither a time such as 2026-01-02T03:04:05Z nor how long ago: 10m".to_owned()
        })
}

impl FromStr for Escape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let key = text
            .strip_prefix("ctrl-")
            .or_else(|| text.strip_prefix('^'));
        match key.map(str::as_bytes) {
            Some([key]) if matches!(key.to_ascii_uppercase(), b'A'..=b'_') => {
                Ok(Self(Some(key.to_ascii_uppercase() - b'@')))
            }
            _ => Err("it is neither ctrl- and one of a-z [ \\ ] ^ _ nor 'none'".to_owned()),
        }
    }
}

impl Escape {
    /// The key as people know it.
    #[must_use]
    pub fn shown(self) -> Option<String> {
        self.0
            .map(|byte| format!("Ctrl-{}", char::from(byte + b'@')))
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "it is not [BIND:]LOCAL:[HOST:]PORT";
        let port = |text: &str| text.parse::<u16>().map_err(|_| FORM.to_owned());
        let parts = parts(text).ok_or(FORM)?;
        let loopback = "127.0.0.1";
        let (bind, local, host, guest) = match parts.as_slice() {
            [port] => (loopback, *port, "", *port),
            [local, guest] => (loopback, *local, "", *guest),
            [local, host, guest] if port(local).is_ok() => (loopback, *local, *host, *guest),
            [bind, local, guest] => (*bind, *local, "", *guest),
            [bind, local, host, guest] => (*bind, *local, *host, *guest),
            _ => return Err(FORM.to_owned()),
        };
        let bind = match bind {
            "*" => "0.0.0.0",
            "localhost" => loopback,
            bind => bind,
        };
        let spec = Self {
            bind: bind
                .parse()
                .map_err(|_| format!("'{}' is no address of this host", bind.escape_debug()))?,
            local: port(local)?,
            host: host.to_owned(),
            port: port(guest)?,
        };
        if spec.port == 0 {
            return Err("there is no port 0 in a VM".to_owned());
        }
        Ok(spec)
    }
}

/// What is between the colons; brackets keep those of an IPv6 address.
fn parts(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        let end = match rest.strip_prefix('[') {
            Some(inside) => {
                let (address, after) = inside.split_once(']')?;
                parts.push(address);
                rest = after;
                0
            }
            None => {
                let end = rest.find(':').unwrap_or(rest.len());
                parts.push(&rest[..end]);
                end
            }
        };
        rest = &rest[end..];
        if rest.is_empty() {
            return Some(parts);
        }
        rest = rest.strip_prefix(':')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_in_many_ways() {
        let cases = [
            ("80", "127.0.0.1", 80, "", 80),
            ("8080:80", "127.0.0.1", 8080, "", 80),
            ("0:80", "127.0.0.1", 0, "", 80),
            ("0.0.0.0:8080:80", "0.0.0.0", 8080, "", 80),
            ("*:8080:80", "0.0.0.0", 8080, "", 80),
            ("[::1]:8080:80", "::1", 8080, "", 80),
            ("8080:db:5432", "127.0.0.1", 8080, "db", 5432),
            ("8080:[fd00::2]:5432", "127.0.0.1", 8080, "fd00::2", 5432),
            ("10.0.0.1:1:db:2", "10.0.0.1", 1, "db", 2),
        ];
        for (text, bind, local, host, port) in cases {
            let expected = Spec {
                bind: bind.parse().unwrap(),
                local,
                host: host.to_owned(),
                port,
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "a",
            "8080:0",
            "8080:",
            ":80",
            "1:2:3:4:5",
            "x:1:2",
            "70000:1",
            "[::1:1:2",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_escape_key_is_one_byte() {
        for (text, byte) in [
            ("ctrl-]", 0x1d),
            ("^]", 0x1d),
            ("ctrl-a", 1),
            ("ctrl-A", 1),
            ("^_", 31),
        ] {
            assert_eq!(text.parse(), Ok(Escape(Some(byte))), "{text}");
        }
        assert_eq!("none".parse(), Ok(Escape(None)));
        assert_eq!(Escape(Some(0x1d)).shown().as_deref(), Some("Ctrl-]"));
        for text in ["", "ctrl-", "a", "ctrl-ab", "ctrl-1", "^"] {
            assert!(text.parse::<Escape>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_moment_is_a_time_or_so_long_ago() {
        assert_eq!(moment("10m"), Ok("-600s".to_owned()));
        let date = "2026-01-02T03:04:05Z";
        assert_eq!(moment(date), Ok(date.to_owned()));
        assert!(moment("yesterday").is_err());
    }
}
