//! WebSockets of the API, over the connections that its other requests have.

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{SplitSink, SplitStream},
};
use reqwest::{Method, StatusCode, Upgraded, header};
use serde_json::Value;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use super::Client;
use crate::failure::{Failure, Problem};

/// No message that comes is larger; a console's scrollback is the largest.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// What may wait to be sent before sending waits.
const MAX_WAITING: usize = 1024 * 1024;

/// The half that sends.
pub type Sender = SplitSink<WebSocketStream<Upgraded>, Message>;

/// The half that receives.
#[derive(Debug)]
pub struct Receiver(SplitStream<WebSocketStream<Upgraded>>);

/// What the server said.
#[derive(Debug)]
pub enum Said {
    Data(Bytes),
    /// An object. A problem is none: it is the error.
    Word(Value),
}

impl Client {
    /// Opens a WebSocket. What the server refuses before is a problem as of any request.
    pub async fn socket(
        &self,
        path: &str,
        query: &[(&str, String)],
        protocol: &str,
    ) -> Result<(Sender, Receiver), Failure> {
        let key = generate_key();
        let request = self
            .request(Method::GET, path)
            .query(query)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        let response = request.send().await.map_err(|error| self.failed(error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let response = self.accepted(response).await?;
            let status = response.status();
            return Err(Failure::Answer(format!(
                "status {status} where a WebSocket was asked for"
            )));
        }
        let is_said = |name, expected: &str| {
            response
                .headers()
                .get(name)
                .is_some_and(|value| value.as_bytes() == expected.as_bytes())
        };
        let accepts = is_said(
            header::SEC_WEBSOCKET_ACCEPT,
            &derive_accept_key(key.as_bytes()),
        );
        if !accepts || !is_said(header::SEC_WEBSOCKET_PROTOCOL, protocol) {
            return Err(Failure::Answer(format!(
                "a WebSocket that does not speak {protocol}"
            )));
        }
        let upgraded = response
            .upgrade()
            .await
            .map_err(|error| self.failed(error))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE))
            .max_write_buffer_size(MAX_WAITING);
        let stream = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        let (sender, receiver) = stream.split();
        Ok((sender, Receiver(receiver)))
    }
}

impl Receiver {
    /// What comes next; nothing after the end.
    pub async fn next(&mut self) -> Result<Option<Said>, Failure> {
        loop {
            let message = match self.0.next().await {
                None => return Ok(None),
                Some(message) => message.map_err(|error| Failure::Cut(Box::new(error)))?,
            };
            match message {
                Message::Binary(data) => return Ok(Some(Said::Data(data))),
                Message::Text(text) => return word(&text).map(Some),
                Message::Close(_) => return Ok(None),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// A message in words.
#[must_use]
pub fn text(word: &Value) -> Message {
    Message::text(word.to_string())
}

fn word(text: &str) -> Result<Said, Failure> {
    let mut word: Value =
        serde_json::from_str(text).map_err(|error| Failure::Answer(error.to_string()))?;
    match word.get_mut("problem") {
        None => Ok(Said::Word(word)),
        Some(problem) => {
            let problem: Problem = serde_json::from_value(problem.take())
                .map_err(|error| Failure::Answer(error.to_string()))?;
            Err(problem.into())
        }
    }
}
