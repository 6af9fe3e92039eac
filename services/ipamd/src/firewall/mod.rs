//! The firewall: asks `nft` what there is, and tells it what to change, in one batch or not at all.

mod guests;
mod listed;
mod rules;

use std::{
    io,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::pool::Lease;

/// A ruleset of many thousand rules is listed in less.
const PATIENCE: Duration = Duration::from_secs(20);

/// All rules, without the elements of sets, which may be many.
const ALL: &[&str] = &["-t", "list", "ruleset"];

/// Why the firewall is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("cannot run nft; is the package nftables installed?")]
    Run(#[source] io::Error),
    #[error("nft gave no answer within {} seconds", PATIENCE.as_secs())]
    Silent,
    #[error("cannot {act}: nft says: {said}")]
    Refused { act: &'static str, said: String },
    #[error("cannot understand nft's list of rules")]
    List(#[source] serde_json::Error),
}

/// Holds guests to their leases, where the kernel can.
#[derive(Debug, Default)]
pub struct Guard {
    /// It cannot. Said once, and not tried again as long as we run.
    impossible: AtomicBool,
}

impl Guard {
    /// Has guests send from the addresses of their leases alone; false where the kernel cannot filter on a bridge,
    /// which is told in the log: VMs run all the same.
    ///
    /// # Errors
    /// `nft` is not there, or refuses on a kernel that can.
    pub async fn ensure(&self, leases: &[Lease]) -> Result<bool, FirewallError> {
        if self.impossible.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match hold(leases).await {
            Ok(()) => Ok(true),
            Err(FirewallError::Refused { act, said }) => {
                let Err(FirewallError::Refused { said: why, .. }) = probe().await else {
                    return Err(FirewallError::Refused { act, said });
                };
                self.impossible.store(true, Ordering::Relaxed);
                tracing::warn!(
                    "guests can use each other's addresses, as this kernel cannot filter on a bridge \
                     (CONFIG_NF_TABLES_BRIDGE); nft says: {why}"
                );
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

async fn hold(leases: &[Lease]) -> Result<(), FirewallError> {
    let listing = list(&["list", "ruleset", guests::FAMILY]).await?;
    let commands = guests::mend(&listing, leases);
    if !commands.is_empty() {
        apply("hold guests to their leases", commands).await?;
        tracing::info!(
            "hold guests to the addresses of their leases: {}",
            leases.len()
        );
    }
    Ok(())
}

/// Whether the kernel would take a table of a bridge's family; nothing is changed.
async fn probe() -> Result<(), FirewallError> {
    let table = json!({"add": {"table": {"family": guests::FAMILY, "name": "volant-probe"}}});
    let batch = json!({ "nftables": [table] }).to_string();
    let act = "try a table of the family bridge";
    nft(act, &["-c", "-j", "-f", "-"], &batch).await.map(drop)
}

/// Lets VMs through: our own table, and two rules in each chain of others that drops by default. A table whose owner
/// forbids that is told in the log: VMs run, but reach nothing beyond the host.
///
/// # Errors
/// `nft` is not there or refuses our own table.
pub async fn ensure(bridge: &str, subnet: Ipv4Net) -> Result<(), FirewallError> {
    let rules::Mending { own, others } = rules::mend(&list(ALL).await?, bridge, subnet);
    if !own.is_empty() {
        apply("set the firewall's table for VMs", own).await?;
        tracing::info!("set the firewall's table for VMs on '{bridge}'");
    }
    for command in others {
        let rule = &command["insert"]["rule"];
        let place = format!("{} {} {}", rule["family"], rule["table"], rule["chain"]);
        match apply("let VMs through", vec![command]).await {
            Ok(()) => tracing::info!("let VMs through the chain {place}, which drops by default"),
            Err(error) => tracing::warn!(
                "VMs reach nothing beyond this host, as the chain {place} drops by default: {error}"
            ),
        }
    }
    Ok(())
}

/// Removes all rules of ours.
///
/// # Errors
/// `nft` is not there or refuses.
pub async fn remove() -> Result<(), FirewallError> {
    let commands = rules::remove(&list(ALL).await?);
    if !commands.is_empty() {
        apply("remove the firewall's rules for VMs", commands).await?;
        tracing::info!("removed the firewall's rules for VMs");
    }
    Ok(())
}

/// Lists rules. When somebody changes rules meanwhile, nft may print nothing at all and call it a success.
async fn list(what: &[&str]) -> Result<Value, FirewallError> {
    const TRIES: usize = 5;
    let act = "list the firewall's rules";
    let args = [&["-j"], what].concat();
    let mut text = String::new();
    for _ in 0..TRIES {
        text = nft(act, &args, "").await?;
        if !text.trim().is_empty() {
            break;
        }
    }
    serde_json::from_str(&text).map_err(FirewallError::List)
}

async fn apply(act: &'static str, commands: Vec<Value>) -> Result<(), FirewallError> {
    let batch = json!({ "nftables": commands }).to_string();
    nft(act, &["-j", "-f", "-"], &batch).await.map(drop)
}

async fn nft(act: &'static str, args: &[&str], input: &str) -> Result<String, FirewallError> {
    let run = async {
        let mut child = Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = timeout(PATIENCE, run)
        .await
        .map_err(|_| FirewallError::Silent)?
        .map_err(FirewallError::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // With -j, older versions print errors to standard output.
    let said = [output.stderr, output.stdout]
        .iter()
        .map(|text| String::from_utf8_lossy(text).trim().to_owned())
        .find(|text| !text.is_empty())
        .unwrap_or_else(|| output.status.to_string());
    let said = said.chars().take(500).collect();
    Err(FirewallError::Refused { act, said })
}
