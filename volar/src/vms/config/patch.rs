//! `KEY=VALUE` as a merge patch (RFC 7396) of a VM's configuration.

use serde_json::{Map, Value};

/// Keys whose values are text, whatever they look like. `*` stands for any key.
const TEXT: [&str; 19] = [
    "env.*",
    "user",
    "workdir",
    "vmm",
    "stop_signal",
    "restart",
    "init",
    "network",
    "network.mode",
    "health_check.type",
    "health_check.endpoint",
    "health_check.url",
    "health_check.path",
    "cloud_init.datasource",
    "cloud_init.seed_mode",
    "cloud_init.user_data.content",
    "cloud_init.meta_data.content",
    "cloud_init.network_config.content",
    "cloud_init.vendor_data.content",
];

/// All of them as one patch. A key without a value is taken away.
pub fn patch(values: &[String]) -> Result<Value, String> {
    let mut patch = Map::new();
    for given in values {
        let (key, value) = given
            .split_once('=')
            .ok_or_else(|| format!("'{}' is not KEY=VALUE", given.escape_debug()))?;
        set(&mut patch, key, read(key, value))?;
    }
    Ok(Value::Object(patch))
}

fn read(key: &str, value: &str) -> Value {
    if value.is_empty() {
        return Value::Null;
    }
    if TEXT.iter().any(|text| is_meant(text, key)) {
        return value.into();
    }
    // What is no JSON is text.
    serde_json::from_str(value).unwrap_or_else(|_| value.into())
}

fn is_meant(pattern: &str, key: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => key.starts_with(start),
        None => key == pattern,
    }
}

fn set(patch: &mut Map<String, Value>, key: &str, value: Value) -> Result<(), String> {
    let mut parts: Vec<&str> = key.split('.').collect();
    // A variable's name may have dots in it.
    if let Some(variable) = key.strip_prefix("env.") {
        parts = vec!["env", variable];
    }
    let shown = key.escape_debug();
    if parts.contains(&"") {
        return Err(format!("'{shown}' is no key such as env.LEVEL"));
    }
    let Some((last, before)) = parts.split_last() else {
        return Ok(());
    };
    let mut at = patch;
    for part in before {
        let below = at.entry(*part).or_insert_with(|| Value::Object(Map::new()));
        at = below
            .as_object_mut()
            .ok_or_else(|| format!("'{shown}' is set twice"))?;
    }
    match at.insert((*last).to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(format!("'{shown}' is set twice")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(values: &[&str]) -> Result<Value, String> {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        patch(&values)
    }

    #[test]
    fn keys_are_paths_and_values_have_their_type() {
        let cases = [
            (vec!["env.A=b"], json!({"env": {"A": "b"}})),
            (
                vec!["env.A=1", "env.B.c=true"],
                json!({"env": {"A": "1", "B.c": "true"}}),
            ),
            (vec!["env.URL=a=b"], json!({"env": {"URL": "a=b"}})),
            (vec!["env.A="], json!({"env": {"A": null}})),
            (
                vec!["limits.cpu_quota_percent=50", "limits.io_weight=7"],
                json!({"limits": {"cpu_quota_percent": 50, "io_weight": 7}}),
            ),
            (
                vec!["root_disk.size_mb=2048"],
                json!({"root_disk": {"size_mb": 2048}}),
            ),
            (vec!["user=1000"], json!({"user": "1000"})),
            (vec!["restart=always"], json!({"restart": "always"})),
            (
                vec!["entrypoint=[\"a\",\"b\"]"],
                json!({"entrypoint": ["a", "b"]}),
            ),
            (
                vec!["rlimits.nofile={\"soft\":1}"],
                json!({"rlimits": {"nofile": {"soft": 1}}}),
            ),
        ];
        for (values, expected) in cases {
            assert_eq!(of(&values), Ok(expected), "{values:?}");
        }
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        for (values, expected) in [
            (vec!["a"], "not KEY=VALUE"),
            (vec!["=a"], "no key"),
            (vec!["a..b=1"], "no key"),
            (vec!["env.=1"], "no key"),
            (vec!["user=a", "user=b"], "twice"),
            (vec!["limits=1", "limits.cpu_weight=1"], "twice"),
        ] {
            let error = of(&values).unwrap_err();
            assert!(error.contains(expected), "{values:?}: {error}");
        }
    }
}
