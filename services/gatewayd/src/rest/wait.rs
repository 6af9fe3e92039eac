//! `GET /api/v1/vms/{name}/wait`: answers once a VM is as it is waited for.

use std::time::Duration;

use axum::{Json, extract::State};
use http::Uri;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout_at};
use volant_spec::Name;

use super::extract::{Named, query};
use crate::{Gateway, Kind, Problem, events::Watch, phase::Phase, view::Vm};

/// Between looks without an event: should one be missed.
const LOOKS: Duration = Duration::from_secs(15);
/// The longest wait, and the one of who says nothing.
const MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum For {
    Ready,
    Stopped,
    Healthy,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(rename = "for")]
    what: For,
    /// In seconds.
    timeout: Option<f64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    There,
    NotYet,
    /// It cannot come, for this reason.
    Never(String),
}

pub async fn wait(
    State(gateway): State<Gateway>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<Vm>, Problem> {
    let Asked { what, timeout } = query(&uri)?;
    let limit = match timeout {
        None => MAX,
        Some(seconds) => Duration::try_from_secs_f64(seconds)
            .map_err(|_| Problem::invalid(format!("'{seconds}' is no time to wait")))?
            .min(MAX),
    };
    let _place = gateway.session()?;
    let deadline = Instant::now() + limit;
    let found = async {
        // Watched before the first look: what changes after it is heard.
        let watch = gateway.events().watch(gateway.systemd()).await?;
        until(&gateway, &name, what, watch).await
    };
    tokio::select! {
        found = timeout_at(deadline, found) => match found {
            Ok(found) => found.map(Json),
            Err(_) => Err(Problem::new(
                Kind::WaitTimedOut,
                format!("VM {name} did not become {} within {limit:?}", what.as_str()),
            )),
        },
        () = gateway.ending().cancelled() => Err(Problem::new(
            Kind::Unavailable,
            "the service is ending: ask again",
        )),
    }
}

async fn until(gateway: &Gateway, name: &Name, what: For, mut watch: Watch) -> Result<Vm, Problem> {
    loop {
        let vm = match gateway.vm(name).await {
            Ok(vm) => vm,
            Err(gone) if gone.kind == Kind::NoSuchVm && what == For::Stopped => {
                return Err(gone);
            }
            Err(problem) => return Err(problem),
        };
        match look(&vm, what) {
            Look::There => return Ok(vm),
            Look::Never(why) => {
                let detail = format!("VM {name} cannot become {}: {why}", what.as_str());
                return Err(Problem::new(Kind::WaitImpossible, detail));
            }
            Look::NotYet => {}
        }
        let again = Instant::now() + LOOKS;
        loop {
            tokio::select! {
                event = watch.next() => match event {
                    Ok(event) if event.vm != name.as_str() => {}
                    Ok(_) | Err(crate::events::CutOff::Slow(_)) => break,
                    Err(crate::events::CutOff::Gone) => {
                        return Err(Problem::new(Kind::Unavailable, "the system bus is gone"));
                    }
                },
                () = sleep_until(again) => break,
            }
        }
    }
}

fn look(vm: &Vm, what: For) -> Look {
    if vm.deleting {
        return Look::Never("it is being deleted".to_owned());
    }
    let failed = || {
        let why = vm.status.as_deref().unwrap_or("nobody knows why");
        Look::Never(format!("it failed: {why}"))
    };
    match (what, vm.phase) {
        (For::Stopped, Phase::Stopped | Phase::Failed) => Look::There,
        (For::Stopped, _) => Look::NotYet,
        (For::Ready | For::Healthy, Phase::Failed) => failed(),
        (For::Ready, Phase::Running) => Look::There,
        (For::Healthy, Phase::Running) => match vm.health.as_deref() {
            Some("healthy") => Look::There,
            Some(_) => Look::NotYet,
            None if vm.ready_since.is_some() => Look::Never("it has no health check".to_owned()),
            // Its supervisor did not answer.
            None => Look::NotYet,
        },
        (For::Ready | For::Healthy, _) => Look::NotYet,
    }
}

impl For {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Stopped => "stopped",
            Self::Healthy => "healthy",
        }
    }
}
