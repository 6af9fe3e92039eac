//! Downloads over http and https, bounded in time: a server that is silent or trickles is given up.
//!
//! It fetches what an API client names, so it knows http and https alone: no file of the host is within its reach.
//! Proxies of the environment (`https_proxy`, `no_proxy` and so on) are honoured.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::{Client, ClientBuilder, Response, StatusCode, header, redirect};
use url::Url;

/// How patient downloads are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the connection, with its TLS.
    pub connect: Duration,
    /// In each such time of waiting, at least [`Limits::bytes`] must arrive; so long may an answer's head take, too.
    pub window: Duration,
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            window: Duration::from_secs(30),
            bytes: 16 * 1024,
        }
    }
}

const MAX_REDIRECTS: usize = 5;

/// Why something was not fetched. The caller knows the URL.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot set up an HTTP client")]
    Client(#[source] reqwest::Error),
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    #[error("the server answered {0}")]
    Answer(StatusCode),
    #[error("the server said nothing for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the server sent {got} bytes in {} ms and was given up", window.as_millis())]
    Slow { got: u64, window: Duration },
    #[error("the download broke off after {got} bytes")]
    Broken { got: u64, source: reqwest::Error },
    #[error("it ended after {got} of {size} bytes")]
    Short { got: u64, size: u64 },
    #[error("it is larger than {limit} bytes")]
    TooLarge { limit: u64 },
}

impl FetchError {
    /// Whether another try may well succeed: the transfer broke off, or the server was slow, busy or away.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Request(error) => !error.is_redirect() && !error.is_builder(),
            Self::Answer(status) => {
                matches!(
                    *status,
                    StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                ) || status.is_server_error()
            }
            Self::Silent(_) | Self::Slow { .. } | Self::Broken { .. } | Self::Short { .. } => true,
            Self::Client(_) | Self::TooLarge { .. } => false,
        }
    }
}

/// Fetches. The HTTP client is made at the first use, as many lives of the daemon need none.
#[derive(Debug)]
pub struct Fetcher {
    base: fn() -> ClientBuilder,
    client: OnceLock<Client>,
    limits: Limits,
}

/// A body that is being received.
#[derive(Debug)]
pub struct Download {
    response: Response,
    start: u64,
    limits: Limits,
    got: u64,
    window_got: u64,
    /// Time spent on waiting in this window; the receiver's own time does not count.
    waited: Duration,
}

impl Fetcher {
    /// `base` gives the client to refine: `reqwest::Client::builder` as a rule.
    #[must_use]
    pub fn new(base: fn() -> ClientBuilder, limits: Limits) -> Self {
        Self {
            base,
            client: OnceLock::new(),
            limits,
        }
    }

    /// How patient this is.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Asks for `url` and answers once the head of a successful answer is here.
    ///
    /// # Errors
    /// The server cannot be reached, is silent, or refuses.
    pub async fn get(&self, url: &Url) -> Result<Download, FetchError> {
        self.get_from(url, 0).await
    }

    /// As [`Fetcher::get`], from byte `offset` on if the server can do that: [`Download::start`] tells.
    ///
    /// # Errors
    /// As [`Fetcher::get`].
    pub async fn get_from(&self, url: &Url, offset: u64) -> Result<Download, FetchError> {
        let mut response = self.ask(url, offset).await?;
        let mut start = 0;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if offset > 0 && begins_at(&response, offset) => {
                start = offset;
            }
            // Another part than the one that was asked for, or none.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => {
                response = self.ask(url, 0).await?;
            }
            _ => {}
        }
        if response.status() == StatusCode::PARTIAL_CONTENT && start == 0
            || !response.status().is_success()
        {
            return Err(FetchError::Answer(response.status()));
        }
        Ok(Download {
            response,
            start,
            limits: self.limits,
            got: 0,
            window_got: 0,
            waited: Duration::ZERO,
        })
    }

    async fn ask(&self, url: &Url, offset: u64) -> Result<Response, FetchError> {
        let mut request = self.client()?.get(url.clone());
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        tokio::time::timeout(self.limits.connect + self.limits.window, request.send())
            .await
            .map_err(|_| FetchError::Silent(self.limits.window))?
            .map_err(|error| FetchError::Request(error.without_url()))
    }

    /// As [`Fetcher::small`], `None` when the server says that there is nothing.
    ///
    /// # Errors
    /// As [`Fetcher::small`].
    pub async fn small_if_there(
        &self,
        url: &Url,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, FetchError> {
        match self.small(url, limit).await {
            Err(FetchError::Answer(StatusCode::NOT_FOUND | StatusCode::GONE)) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// The whole body of `url`, of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Fetcher::get`] and [`Download::chunk`]; or it is larger.
    pub async fn small(&self, url: &Url, limit: usize) -> Result<Vec<u8>, FetchError> {
        let too_large = FetchError::TooLarge {
            limit: limit as u64,
        };
        let mut download = self.get(url).await?;
        if download.total().is_some_and(|total| total > limit as u64) {
            return Err(too_large);
        }
        let mut body = Vec::new();
        while let Some(chunk) = download.chunk().await? {
            if body.len() + chunk.len() > limit {
                return Err(too_large);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn client(&self) -> Result<&Client, FetchError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = (self.base)()
            .connect_timeout(self.limits.connect)
            .redirect(redirect::Policy::custom(follow))
            .user_agent(concat!("volant/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(FetchError::Client)?;
        Ok(self.client.get_or_init(|| client))
    }
}

fn begins_at(response: &Response, offset: u64) -> bool {
    let range = content_range(response);
    range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}

/// The size of the whole that an answer with a part tells.
fn total_of(response: &Response) -> Option<u64> {
    let (_, total) = content_range(response)?.rsplit_once('/')?;
    total.parse().ok()
}

fn content_range(response: &Response) -> Option<&str> {
    let range = response.headers().get(header::CONTENT_RANGE)?;
    range.to_str().ok()
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
    let from_https = previous.last().is_some_and(|url| url.scheme() == "https");
    match next.scheme() {
        "https" => None,
        "http" if !from_https => None,
        scheme => Some(format!("a redirect to {scheme} is not followed from here")),
    }
}

impl Download {
    /// The first byte that comes.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The size of the whole that the server announced.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        if self.start > 0
            && let Some(total) = total_of(&self.response)
        {
            // A server may send a part of what was asked for.
            return Some(total);
        }
        let rest = self.response.content_length()?;
        Some(rest.saturating_add(self.start))
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or the server is too slow.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
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
                    return Err(FetchError::Broken {
                        got: self.got,
                        source: error.without_url(),
                    });
                }
                Err(_) if self.window_got < self.limits.bytes => {
                    return Err(FetchError::Slow {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_web_and_never_leave_https() {
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
    }

    #[test]
    fn the_sixth_redirect_is_not_followed() {
        let url = Url::parse("https://a.example/").unwrap();
        assert_eq!(refusal(&vec![url.clone(); MAX_REDIRECTS], &url), None);
        assert!(refusal(&vec![url.clone(); MAX_REDIRECTS + 1], &url).is_some());
    }
}
