//! Proving who asks: what a registry's 401 wants, and the tokens it gives.

use std::fmt;

use http_auth::ChallengeParser;
use reqwest::{
    RequestBuilder, Response, StatusCode,
    header::{HeaderMap, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use url::Url;

use crate::{
    auth::Credential,
    error::Trouble,
    http::{Body, Transport, failure},
    registries_conf::Endpoint,
};

const MAX_ANSWER: usize = 1024 * 1024;

/// What goes into a request's `Authorization`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Authorization {
    Basic { user: String, password: String },
    Bearer(String),
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Bearer(_) => "Bearer(…)",
        })
    }
}

impl Authorization {
    pub fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic { user, password } => request.basic_auth(user, Some(password)),
            Self::Bearer(token) => request.bearer_auth(token),
        }
    }
}

/// What a 401 asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// The best one that the headers have: a token rather than the password itself.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let all: Vec<Self> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(Self::parse)
            .collect();
        all.into_iter()
            .max_by_key(|challenge| matches!(challenge, Self::Bearer { .. }))
    }

    fn parse(value: &str) -> Vec<Self> {
        ChallengeParser::new(value)
            .map_while(Result::ok)
            .filter_map(|challenge| {
                let param = |name: &str| {
                    let mut params = challenge.params.iter();
                    let found = params.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                    Some(found.1.to_unescaped())
                };
                match challenge.scheme.to_ascii_lowercase().as_str() {
                    "basic" => Some(Self::Basic),
                    "bearer" => Some(Self::Bearer {
                        realm: param("realm")?,
                        service: param("service"),
                    }),
                    _ => None,
                }
            })
            .collect()
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Fetches a token for `scope` where the challenge says. `from` is the URL that was asked.
pub(crate) async fn fetch(
    transport: &Transport,
    endpoint: &Endpoint,
    (realm, service): (&str, Option<&str>),
    scope: &str,
    credential: Option<&Credential>,
    from: &Url,
) -> Result<Authorization, Trouble> {
    let odd = |what: &str| Trouble::Protocol(format!("its token server {what}"));
    let realm = Url::parse(realm).map_err(|_| odd("is no URL"))?;
    match (from.scheme(), realm.scheme()) {
        (_, "https") | ("http", "http") => {}
        _ => return Err(odd("is not reached by https")),
    }
    let service = service.map(|service| ("service", service));
    let client = transport.client(endpoint)?;
    let mut attempt = 0;
    let response = loop {
        attempt += 1;
        let sent = transport.send(match credential {
            Some(Credential::IdentityToken(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token),
                    ("client_id", "volant"),
                    ("scope", scope),
                ];
                let form: Vec<_> = form.into_iter().chain(service).collect();
                client.post(realm.clone()).form(&form)
            }
            other => {
                let query: Vec<_> = service.into_iter().chain([("scope", scope)]).collect();
                let request = client.get(realm.clone()).query(&query);
                match other {
                    Some(Credential::Password { user, password }) => {
                        request.basic_auth(user, Some(password))
                    }
                    _ => request,
                }
            }
        });
        match passing(sent.await, transport, attempt) {
            Ok(response) => break response?,
            Err(pause) => tokio::time::sleep(pause).await,
        }
    };
    if response.status() != StatusCode::OK {
        return Err(failure(response, endpoint, transport.limits).await);
    }
    let body = Body::new(response, transport.limits)
        .whole(MAX_ANSWER)
        .await?;
    let answer: TokenAnswer =
        serde_json::from_slice(&body).map_err(|_| odd("answered without a token"))?;
    answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
        .map(Authorization::Bearer)
        .ok_or_else(|| odd("answered without a token"))
}

/// The answer to go on with, or as an error the pause before another try.
pub(crate) fn passing(
    sent: Result<Response, Trouble>,
    transport: &Transport,
    attempt: u32,
) -> Result<Result<Response, Trouble>, std::time::Duration> {
    let (passing, response) = match &sent {
        Ok(response) => (crate::error::is_passing(response.status()), Some(response)),
        Err(trouble) => (trouble.is_passing(), None),
    };
    match transport.pause(attempt, response) {
        Some(pause) if passing => Err(pause),
        _ => Ok(sent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_found_among_others() {
        let bearer = |service: Option<&str>| Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: service.map(str::to_owned),
        };
        let cases = [
            (vec![r#"Basic realm="x""#], Some(Challenge::Basic)),
            (
                vec![r#"Bearer realm="https://auth.example/token",service="reg",scope="a b""#],
                Some(bearer(Some("reg"))),
            ),
            (
                vec![
                    r#"Basic realm="x""#,
                    r#"bearer realm="https://auth.example/token""#,
                ],
                Some(bearer(None)),
            ),
            (vec!["Negotiate"], None),
            (vec!["Bearer service=x"], None),
            (vec!["\"=,,,=\""], None),
            (vec![], None),
        ];
        for (values, expected) in cases {
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
            }
            assert_eq!(Challenge::of(&headers), expected, "{values:?}");
        }
    }
}
