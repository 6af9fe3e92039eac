//! HTTP as registries are spoken to: bounded in time and size, and never from https down to http.

use std::{sync::OnceLock, time::Duration};

use bytes::Bytes;
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::time::Instant;
use url::Url;

use crate::{error::Trouble, registries_conf::Endpoint};

/// How patient a client is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the connection, with its TLS.
    pub connect: Duration,
    /// In each such time of waiting, at least [`Limits::bytes`] must arrive; so long may an answer's head take, too.
    pub window: Duration,
    pub bytes: u64,
    /// How often a request is made before it is given up, and the time before the second; it doubles each time.
    pub attempts: u32,
    pub backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            window: Duration::from_secs(30),
            bytes: 16 * 1024,
            attempts: 3,
            backoff: Duration::from_millis(500),
        }
    }
}

const MAX_REDIRECTS: usize = 5;
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const MAX_ERROR_BODY: usize = 16 * 1024;

/// The HTTP clients, each made at its first use.
#[derive(Debug, Default)]
pub(crate) struct Transport {
    pub limits: Limits,
    strict: OnceLock<Client>,
    lax: OnceLock<Client>,
    local: OnceLock<Client>,
}

impl Transport {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// The client for `endpoint`: what is on this machine is not asked through a proxy, and the certificate of an
    /// insecure registry may be anyone's.
    pub fn client(&self, endpoint: &Endpoint) -> Result<&Client, Trouble> {
        let local = endpoint.is_loopback();
        let cell = match (local, endpoint.insecure) {
            (true, _) => &self.local,
            (false, true) => &self.lax,
            (false, false) => &self.strict,
        };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let mut builder = Client::builder()
            .connect_timeout(self.limits.connect)
            .redirect(redirect::Policy::custom(follow))
            .referer(false)
            .user_agent(concat!("volant/", env!("CARGO_PKG_VERSION")));
        if local {
            builder = builder.no_proxy();
        }
        if endpoint.insecure {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let client = builder.build().map_err(Trouble::Client)?;
        Ok(cell.get_or_init(|| client))
    }

    /// Sends once; answers when the head of the answer is here, whatever its status.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Trouble> {
        tokio::time::timeout(self.limits.connect + self.limits.window, request.send())
            .await
            .map_err(|_| Trouble::Silent(self.limits.window))?
            .map_err(|error| Trouble::Request(error.without_url()))
    }

    /// How long to wait before try number `attempt + 1`, or `None` when it was the last.
    pub fn pause(&self, attempt: u32, response: Option<&Response>) -> Option<Duration> {
        if attempt >= self.limits.attempts {
            return None;
        }
        let asked = response
            .and_then(|response| response.headers().get(reqwest::header::RETRY_AFTER))
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let own = self.limits.backoff * 2_u32.saturating_pow(attempt.saturating_sub(1).min(8));
        Some(asked.unwrap_or(own).min(MAX_RETRY_AFTER))
    }
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    match refusal(attempt.previous(), attempt.url()) {
        None => attempt.follow(),
        Some(why) => attempt.error(why),
    }
}

/// Why a redirect is not followed. `previous` are the URLs so far, the first included.
fn refusal(previous: &[Url], next: &Url) -> Option<String> {
    if previous.len() > MAX_REDIRECTS {
        return Some(format!("more than {MAX_REDIRECTS} redirects"));
    }
    let from_https = previous.iter().any(|url| url.scheme() == "https");
    match next.scheme() {
        "https" => None,
        "http" if !from_https => None,
        scheme => Some(format!("a redirect to {scheme} is not followed from here")),
    }
}

/// A body that is being received, with the rule that a slow server is given up.
#[derive(Debug)]
pub(crate) struct Body {
    response: Response,
    limits: Limits,
    got: u64,
    window_got: u64,
    /// Time spent on waiting in this window; the receiver's own time does not count.
    waited: Duration,
}

impl Body {
    pub fn new(response: Response, limits: Limits) -> Self {
        Self {
            response,
            limits,
            got: 0,
            window_got: 0,
            waited: Duration::ZERO,
        }
    }

    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Trouble> {
        loop {
            let left = self.limits.window.saturating_sub(self.waited);
            let begun = Instant::now();
            let answer = tokio::time::timeout(left, self.response.chunk()).await;
            self.waited += begun.elapsed();
            match answer {
                Ok(Ok(Some(chunk))) => {
                    self.got += chunk.len() as u64;
                    self.window_got += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => {
                    return Err(Trouble::Broken {
                        got: self.got,
                        source: error.without_url(),
                    });
                }
                Err(_) if self.window_got < self.limits.bytes => {
                    return Err(Trouble::Slow {
                        got: self.window_got,
                        window: self.limits.window,
                    });
                }
                Err(_) => {
                    self.waited = Duration::ZERO;
                    self.window_got = 0;
                }
            }
        }
    }

    /// All of it, of at most `limit` bytes.
    pub async fn whole(mut self, limit: usize) -> Result<Vec<u8>, Trouble> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if all.len() + chunk.len() > limit {
                return Err(Trouble::TooLarge {
                    limit: limit as u64,
                });
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }
}

/// What an answer that is no success means.
pub(crate) async fn failure(response: Response, endpoint: &Endpoint, limits: Limits) -> Trouble {
    let status = response.status();
    let body = Body::new(response, limits).whole(MAX_ERROR_BODY).await;
    let detail = detail(&body.unwrap_or_default());
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Trouble::Unauthorized {
            host: endpoint.host.clone(),
            status,
            detail,
        },
        StatusCode::NOT_FOUND => Trouble::NotFound { status, detail },
        status => Trouble::Answer { status, detail },
    }
}

/// The registry's own words, from the JSON that the specification asks for; nothing if it is something else.
fn detail(body: &[u8]) -> String {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(body) else {
        return String::new();
    };
    let first = &answer["errors"][0];
    let text = first["message"]
        .as_str()
        .filter(|text| !text.is_empty())
        .or(first["code"].as_str());
    let words: String = text
        .unwrap_or_default()
        .chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect();
    if words.is_empty() {
        words
    } else {
        format!(": {words}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_leave_https_and_end() {
        let [http, https, file] = ["http://a.example/", "https://a.example/", "file:///a"]
            .map(|url| Url::parse(url).unwrap());
        let cases = [
            (&http, &http, true),
            (&http, &https, true),
            (&https, &https, true),
            (&https, &http, false),
            (&http, &file, false),
            (&https, &file, false),
        ];
        for (from, to, follows) in cases {
            let refused = refusal(std::slice::from_ref(from), to);
            assert_eq!(refused.is_none(), follows, "{from} to {to}: {refused:?}");
        }
        assert!(refusal(&vec![https.clone(); MAX_REDIRECTS + 1], &https).is_some());
    }

    #[test]
    fn a_registrys_words_are_bounded_and_harmless() {
        let long = "x".repeat(5000);
        let body = format!(r#"{{"errors":[{{"code":"DENIED","message":"\u001b[2J{long}"}}]}}"#);
        let words = detail(body.as_bytes());
        assert!(words.len() < 300 && !words.contains('\u{1b}'), "{words}");
        for odd in [
            "",
            "[]",
            "{}",
            r#"{"errors":7}"#,
            r#"{"errors":[]}"#,
            "<html>",
        ] {
            assert_eq!(detail(odd.as_bytes()), "", "{odd}");
        }
        assert_eq!(detail(br#"{"errors":[{"code":"DENIED"}]}"#), ": DENIED");
    }

    #[test]
    fn pauses_double_and_end() {
        let transport = Transport::new(Limits::default());
        let pauses: Vec<_> = (1..=3)
            .map(|attempt| transport.pause(attempt, None))
            .collect();
        let ms = Duration::from_millis;
        assert_eq!(pauses, [Some(ms(500)), Some(ms(1000)), None]);
    }
}
