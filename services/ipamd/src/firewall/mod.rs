//! The firewall: asks `nft` what there is, and tells it what to change, in one batch or not at all.

mod rules;

use std::{io, process::Stdio, time::Duration};

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// A ruleset of many thousand rules is listed in less.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// Lets VMs through: our own table, and two rules in each chain of others that drops by default. A table whose owner
/// forbids that is told in the log: VMs run, but reach nothing beyond the host.
///
/// # Errors
/// `nft` is not there or refuses our own table.
pub async fn ensure(bridge: &str, subnet: Ipv4Net) -> Result<(), FirewallError> {
    let rules::Mending { own, others } = rules::mend(&list().await?, bridge, subnet);
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
    let commands = rules::remove(&list().await?);
    if !commands.is_empty() {
        apply("remove the firewall's rules for VMs", commands).await?;
        tracing::info!("removed the firewall's rules for VMs");
    }
    Ok(())
}

/// All rules, without the elements of sets, which may be many.
async fn list() -> Result<Value, FirewallError> {
    let act = "list the firewall's rules";
    let text = nft(act, &["-j", "-t", "list", "ruleset"], "").await?;
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
