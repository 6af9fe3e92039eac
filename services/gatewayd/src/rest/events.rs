//! `GET /api/v1/events`: what happens to VMs, as Server-Sent Events.

use std::time::Duration;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{
    HeaderValue, Uri,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::Deserialize;
use volant_spec::Name;

use super::extract::{name, query};
use crate::{
    Gateway, Problem, Session,
    events::{CutOff, Event, Watch},
};

/// After so long without an event a comment is sent: who is gone is noticed.
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    vm: Option<String>,
}

struct Watching {
    /// `None` once nothing more is to be told.
    watch: Option<Watch>,
    vm: Option<Name>,
    gateway: Gateway,
    begun: bool,
    _place: Session,
}

pub async fn events(State(gateway): State<Gateway>, uri: Uri) -> Result<Response, Problem> {
    let Asked { vm } = query(&uri)?;
    let vm = vm.as_deref().map(name).transpose()?;
    let place = gateway.session()?;
    let watch = gateway.events().watch(gateway.systemd()).await?;
    let watching = Watching {
        watch: Some(watch),
        vm,
        gateway,
        begun: false,
        _place: place,
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    let body = Body::from_stream(told(watching));
    Ok((headers, body).into_response())
}

fn told(watching: Watching) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
    stream::unfold(watching, async |mut watching| {
        let text = watching.next().await?;
        Some((Ok(Bytes::from(text)), watching))
    })
}

impl Watching {
    async fn next(&mut self) -> Option<String> {
        if !self.begun {
            // The client knows that it watches, before anything happens.
            self.begun = true;
            return Some(": watching\n\n".to_owned());
        }
        let watch = self.watch.as_mut()?;
        let wanted = async {
            loop {
                let event = watch.next().await;
                match (&event, &self.vm) {
                    (Ok(event), Some(vm)) if event.vm != vm.as_str() => {}
                    _ => return event,
                }
            }
        };
        tokio::select! {
            event = tokio::time::timeout(HEARTBEAT, wanted) => match event {
                Ok(Ok(event)) => Some(written(&event)),
                Ok(Err(cut_off)) => {
                    self.watch = None;
                    Some(last(&cut_off))
                }
                Err(_) => Some(": still here\n\n".to_owned()),
            },
            () = self.gateway.ending().cancelled() => {
                self.watch = None;
                Some(": the service is ending; connect again\n\n".to_owned())
            }
        }
    }
}

/// An event as the format has it. JSON has no line feeds, and the event's name is a word.
fn written(event: &Event) -> String {
    let word: String = event
        .event
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    let data = serde_json::to_string(event).expect("a struct of texts and values is always JSON");
    format!("id: {}\nevent: {word}\ndata: {data}\n\n", event.id)
}

/// What is told to who is cut off.
fn last(cut_off: &CutOff) -> String {
    let data = serde_json::json!({"reason": cut_off.to_string()});
    format!("event: cut-off\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_three_lines_whatever_is_in_it() {
        let event = Event {
            id: 7,
            time: "2026-11-24T10:00:00.000Z".to_owned(),
            vm: "web".to_owned(),
            event: "re\nady".to_owned(),
            details: [("line".to_owned(), "a\nb".into())].into(),
        };
        let text = written(&event);
        assert_eq!(text.trim_end().lines().count(), 3, "{text}");
        assert!(text.starts_with("id: 7\nevent: ready\ndata: {"), "{text}");
        assert!(text.ends_with("}\n\n"), "{text}");
    }
}
