//! What the whole-system tests share: a host with Volant installed and a small plugin in it.
//!
//! The plugin `hello` is busybox: its web server answers with the guest's name, and fetches another
//! server's page for whoever asks (by `nc`, as the `wget` of busybox-static crashes in its resolver).

pub mod debian;
pub mod figures;
pub mod nginx;

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
pub use volant_testhost::{Host, Packages, eventually};

/// How long a guest may take to boot here, under emulation and beside others.
pub const BOOT: Duration = Duration::from_secs(90);

/// A host with Volant set up and the plugin `hello` installed.
#[derive(Debug)]
pub struct Site {
    pub host: Host,
}

impl Site {
    /// Boots the host. Every test has its own.
    ///
    /// # Errors
    /// The packages are not there (`cargo xtask test` makes them), or a step failed.
    pub fn new() -> Result<Self> {
        let site = Self {
            host: Packages::from_env()?.host()?,
        };
        site.host.sh(
            "fledge keygen --no-password && volar plugins trust add /root/.config/volant/signing.pub --name tests",
        )?;
        site.plugin("hello", HELLO, "")?;
        Ok(site)
    }

    /// Has the host take plugins that are not signed, which it says aloud each time.
    ///
    /// # Errors
    /// The configuration cannot be changed.
    pub fn take_unsigned(&self) -> Result<()> {
        self.set("signatures", "\"warn\"")
    }

    /// Sets a key that `volar setup` left as a comment in the host's configuration.
    ///
    /// # Errors
    /// It is not there.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let file = "/etc/volant/volant.toml";
        self.host.sh(&format!(
            "sed -i 's|^#* *{key} = .*|{key} = {value}|' {file} && grep -q '^{key} = ' {file}"
        ))?;
        Ok(())
    }

    /// Builds and installs a plugin whose workload is a shell script; `more` is added to its `fledge.toml`.
    ///
    /// # Errors
    /// A step failed.
    pub fn plugin(&self, name: &str, script: &str, more: &str) -> Result<()> {
        self.build_plugin(name, script, more)?;
        self.host.sh(&format!(
            "volar plugins install --manifest /root/{name}/{name}.manifest.json"
        ))?;
        Ok(())
    }

    /// Builds and signs a plugin without installing it, in `/root/NAME`.
    ///
    /// # Errors
    /// A step failed.
    pub fn build_plugin(&self, name: &str, script: &str, more: &str) -> Result<()> {
        let folder = self.host.path().join("root").join(name);
        fs::create_dir_all(&folder).context("cannot make the plugin's folder")?;
        fs::write(folder.join("run"), format!("#!/bin/busybox sh\n{script}"))
            .context("cannot write the script")?;
        fs::write(
            folder.join("fledge.toml"),
            format!("{}\n{more}", fledge_toml(name)),
        )
        .context("cannot write fledge.toml")?;
        self.host.sh(&format!(
            "cd /root/{name} && fledge build && fledge sign {name}.manifest.json"
        ))?;
        Ok(())
    }

    /// Creates a VM of a plugin and waits until it is ready.
    ///
    /// # Errors
    /// `volar` failed.
    pub fn create(&self, vm: &str, plugin: &str) -> Result<()> {
        self.host.sh(&format!(
            "volar vms create {vm} --plugin {plugin} --cpu 1 --memory 128"
        ))?;
        Ok(())
    }

    /// A VM, as `volar vms get --output json` tells it.
    ///
    /// # Errors
    /// There is none.
    pub fn vm(&self, vm: &str) -> Result<Value> {
        let text = self.host.sh(&format!("volar vms get {vm} --output json"))?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// A VM's address.
    ///
    /// # Errors
    /// It has none.
    pub fn address(&self, vm: &str) -> Result<String> {
        let found = self.vm(vm)?;
        Ok(found["address"]
            .as_str()
            .with_context(|| format!("{vm} has no address: {found}"))?
            .to_owned())
    }

    /// What an address answers to the host, once it does.
    ///
    /// # Errors
    /// It does not within [`BOOT`].
    pub fn page(&self, url: &str) -> Result<String> {
        eventually(&format!("{url} answers"), BOOT, || {
            let output = self.host.try_sh(&format!(
                "curl --silent --show-error --fail --max-time 10 '{url}'"
            ))?;
            Ok(output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
        })
    }

    /// Waits until an address answers to the host with just this text.
    ///
    /// # Errors
    /// It does not within [`BOOT`].
    pub fn expect_page(&self, url: &str, expected: &str) -> Result<()> {
        let mut last = String::new();
        eventually(&format!("{url} answers '{expected}'"), BOOT, || {
            last = self.page(url)?;
            Ok((last.trim() == expected).then_some(()))
        })
        .with_context(|| format!("its last answer: {last}"))
    }

    /// Runs a command that must fail, and gives all that it printed.
    ///
    /// # Errors
    /// It did not fail.
    pub fn refused(&self, script: &str) -> Result<String> {
        let output = self.host.try_sh(script)?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(
            !output.status.success(),
            "this was not refused: {script}\n{text}"
        );
        Ok(text)
    }

    /// Waits until a unit is in a state that `systemctl is-active` names.
    ///
    /// # Errors
    /// It is not within [`BOOT`].
    pub fn wait_for_unit(&self, unit: &str, state: &str) -> Result<()> {
        eventually(&format!("{unit} is {state}"), BOOT, || {
            let output = self.host.try_sh(&format!("systemctl is-active {unit}"))?;
            Ok((String::from_utf8_lossy(&output.stdout).trim() == state).then_some(()))
        })
        .with_context(|| {
            self.host
                .sh(&format!("systemctl status {unit} --no-pager || true"))
                .unwrap_or_default()
        })
    }

    /// The journal of a VM's unit.
    ///
    /// # Errors
    /// journalctl failed.
    pub fn journal(&self, vm: &str) -> Result<String> {
        self.host.sh(&format!(
            "journalctl --no-pager --output cat --unit volant-vm@{vm}"
        ))
    }

    /// All that a VM could leave behind: links, rules, leases, definitions, files, processes.
    ///
    /// # Errors
    /// A command failed.
    pub fn traces(&self) -> Result<String> {
        self.host.sh(
            "ip -o link show | sed 's/^[0-9]*: //; s/ state [A-Z]*//; s/NO-CARRIER,//; s/LOWER_UP//; s/,>/>/' | sort; \
             nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'; \
             busctl --json=short call com.volantvm.Ipam1 /com/volantvm/Ipam1 com.volantvm.Ipam1.Manager ListLeases; \
             volar vms list --output json; \
             find /run/volant /var/lib/volant -not -name '*-wal' -not -name '*-shm' | sort; \
             ls /etc/systemd/system/multi-user.target.wants | grep volant-vm || true; \
             pgrep -a 'qemu|vhost-device|vmd' || true; \
             systemctl list-units --all --plain --no-legend 'volant-vm@*'",
        )
    }
}

const HELLO: &str = r#"
mkdir -p /www/cgi-bin
hostname > /www/index.html
cat > /www/cgi-bin/fetch <<'END'
#!/bin/sh
echo "Content-Type: text/plain"
echo
printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 10 "$QUERY_STRING" 80 2>&1 | sed '1,/^.$/d'
END
chmod +x /www/cgi-bin/fetch
echo "hello from the workload"
echo "a word on standard error" >&2
exec httpd -f -p 80 -h /www
"#;

fn fledge_toml(name: &str) -> String {
    format!(
        r#"[plugin]
name = "{name}"
strategy = "initramfs"

[[file_mappings]]
source = "/bin/busybox"
dest = "/bin/busybox"
mode = 0o755

[[file_mappings]]
source = "./run"
dest = "/usr/bin/run"
mode = 0o755

[workload]
entrypoint = ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin; exec /usr/bin/run"]
"#
    )
}
