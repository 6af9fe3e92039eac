//! JSON Schemas of values that are texts with a rule.

use schemars::JsonSchema;

/// An RFC 1123 label: a-z, 0-9 and '-', 1 to 63 characters, with no hyphen at either end.
#[derive(Debug, JsonSchema)]
#[schemars(extend("pattern" = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
pub struct Name(#[allow(dead_code, reason = "the schema alone is used")] String);

/// A SHA-256 digest: `sha256:` and 64 hex digits; the prefix may be left out.
#[derive(Debug, JsonSchema)]
#[schemars(extend("pattern" = "^(sha256:)?[0-9a-fA-F]{64}$"))]
pub struct Digest(#[allow(dead_code, reason = "the schema alone is used")] String);

/// 1 to 64 characters of A-Z a-z 0-9 . _ + -
#[derive(Debug, JsonSchema)]
#[schemars(extend("pattern" = "^[A-Za-z0-9._+-]{1,64}$"))]
pub struct Version(#[allow(dead_code, reason = "the schema alone is used")] String);

/// The version of this schema.
#[derive(Debug, JsonSchema)]
#[schemars(extend("enum" = ["1", "v1", "1.0"]))]
pub struct SchemaVersion(#[allow(dead_code, reason = "the schema alone is used")] String);
