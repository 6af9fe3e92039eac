//! `/api/v1/vms/{name}/config` and `/secrets`: what a VM is to be.

use axum::{
    Json,
    extract::{FromRequestParts, Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode, Uri,
    header::{ETAG, IF_MATCH},
    request::Parts,
};
use serde::Deserialize;
use serde_json::Value;
use volant_proto::registry::v1::SecretValue;
use volant_spec::{Name, VmConfig};

use super::extract::{Named, bounded, json_body, merge_patch_body, name, parse, query};
use crate::{
    Gateway, Kind, Problem,
    config::{Effective, Version, merge},
};

/// The largest secret, in bytes.
pub const MAX_SECRET: usize = 128 * 1024;
const SET: &str = "set";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Which {
    version: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Back {
    version: u64,
}

/// With the version as its tag, for `If-Match`.
struct Tagged(Effective);

impl IntoResponse for Tagged {
    fn into_response(self) -> Response {
        let tag = format!("\"{}\"", self.0.version.version);
        let tag = HeaderValue::from_str(&tag).expect("a number in quotes is visible ASCII");
        ([(ETAG, tag)], Json(self.0)).into_response()
    }
}

pub async fn get(
    State(gateway): State<Gateway>,
    Named(name): Named,
    uri: Uri,
) -> Result<Response, Problem> {
    let Which { version } = query(&uri)?;
    let config = gateway.config(&name, version).await?;
    Ok(Tagged(config).into_response())
}

pub async fn put(
    State(gateway): State<Gateway>,
    Named(name): Named,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let expected = expected(&headers)?;
    let body = json_body(request).await?;
    let config: VmConfig = parse(&body)?;
    let config = gateway.set_config(&name, &config, expected, SET).await?;
    Ok(Tagged(config).into_response())
}

pub async fn patch(
    State(gateway): State<Gateway>,
    Named(name): Named,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let expected = expected(&headers)?;
    let body = merge_patch_body(request).await?;
    let patch: Value = parse(&body)?;
    let change = |newest| {
        serde_json::from_value(merge(newest, patch.clone())).map_err(|error| {
            Problem::invalid(format!("the configuration would not be valid: {error}"))
        })
    };
    let made = gateway.change_config(&name, expected, SET, change).await?;
    let config = gateway.config(&name, made.version).await?;
    Ok(Tagged(config).into_response())
}

pub async fn history(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Vec<Version>>, Problem> {
    let versions = gateway.registry().configs(&name).await?;
    let versions = versions.into_iter().map(Version::try_from);
    versions.collect::<Result<_, _>>().map(Json)
}

pub async fn rollback(
    State(gateway): State<Gateway>,
    Named(name): Named,
    request: Request,
) -> Result<Response, Problem> {
    let body = json_body(request).await?;
    let Back { version } = parse(&body)?;
    if version == 0 {
        return Err(Problem::invalid("versions count from 1"));
    }
    let config = gateway.roll_back(&name, version).await?;
    Ok(Tagged(config).into_response())
}

/// The version that must be the newest; 0 is any.
fn expected(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(value) = headers.get(IF_MATCH) else {
        return Ok(0);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(0);
    }
    let tag = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    let version = tag.and_then(|text| text.parse().ok());
    version.filter(|version| *version != 0).ok_or_else(|| {
        Problem::invalid(format!(
            "If-Match is '{text}', and must be one ETag that a configuration was answered with"
        ))
    })
}

/// The VM and the secret in the path.
#[derive(Debug)]
pub struct Secret {
    vm: Name,
    name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Secret {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((vm, secret)) =
            path.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
        Ok(Self {
            vm: name(&vm)?,
            name: secret_name(secret)?,
        })
    }
}

/// A secret's name is a file's.
pub fn secret_name(name: String) -> Result<String, Problem> {
    let is_valid = (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    match is_valid {
        true => Ok(name),
        false => Err(Problem::new(
            Kind::InvalidName,
            "a secret's name is at most 64 letters, digits, '.', '_' and '-', and begins with no '.'",
        )),
    }
}

pub async fn put_secret(
    State(gateway): State<Gateway>,
    Secret { vm, name }: Secret,
    request: Request,
) -> Result<StatusCode, Problem> {
    let value = bounded(request.into_body(), MAX_SECRET).await?.to_vec();
    let secret = SecretValue { name, value };
    gateway.registry().put_secret(&vm, secret).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn remove_secret(
    State(gateway): State<Gateway>,
    Secret { vm, name }: Secret,
) -> Result<StatusCode, Problem> {
    gateway.registry().remove_secret(&vm, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_the_version_that_must_be_the_newest() {
        let told = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_MATCH, HeaderValue::from_static(value));
            expected(&headers).ok()
        };
        assert_eq!(expected(&HeaderMap::new()).unwrap(), 0);
        let cases = [
            ("\"3\"", Some(3)),
            ("*", Some(0)),
            ("3", None),
            ("\"0\"", None),
            ("W/\"3\"", None),
            ("\"3\", \"4\"", None),
        ];
        for (value, version) in cases {
            assert_eq!(told(value), version, "{value}");
        }
    }

    #[test]
    fn a_secrets_name_is_a_files() {
        for name in ["db-password", "A.b_1", "x"] {
            assert!(secret_name(name.to_owned()).is_ok(), "{name}");
        }
        let long = "x".repeat(65);
        for name in ["", ".hidden", "..", "a/b", "ä", "a b", long.as_str()] {
            assert!(secret_name(name.to_owned()).is_err(), "{name}");
        }
    }
}
