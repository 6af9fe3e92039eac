//! Configurations and secrets in files, or on standard input.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde_json::Value;

use crate::failure::Failure;

/// No configuration is larger.
const MAX_CONFIG: u64 = 4 * 1024 * 1024;
/// No secret is.
const MAX_SECRET: u64 = 128 * 1024;

/// A configuration: TOML if the file is named so or is no JSON.
pub fn config(path: &Path) -> Result<Value, Failure> {
    let text = String::from_utf8(bytes(path, MAX_CONFIG)?)
        .map_err(|_| Failure::Usage(format!("{} is not UTF-8", shown(path))))?;
    parse(&text, path.extension().is_some_and(|end| end == "toml"))
        .map_err(|why| Failure::Usage(format!("{} is no configuration: {why}", shown(path))))
}

/// A secret, every byte.
pub fn secret(path: &Path) -> Result<Vec<u8>, Failure> {
    bytes(path, MAX_SECRET)
}

/// A document, as it is.
pub fn text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(bytes(path, MAX_CONFIG)?)
        .map_err(|_| Failure::Usage(format!("{} is not UTF-8", shown(path))))
}

pub fn parse(text: &str, is_toml: bool) -> Result<Value, String> {
    let value: Value = if is_toml || !text.trim_start().starts_with('{') {
        toml::from_str(text).map_err(|error| error.to_string())?
    } else {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    };
    if value.is_object() {
        Ok(value)
    } else {
        Err("it is no object".to_owned())
    }
}

fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let failed = |source: io::Error| Failure::Io {
        act: format!("cannot read {}", shown(path)),
        source,
    };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().take(most + 1).read_to_end(&mut bytes)
    } else {
        let file = File::open(path).map_err(failed)?;
        file.take(most + 1).read_to_end(&mut bytes)
    }
    .map_err(failed)?;
    if bytes.len() as u64 > most {
        let why = format!("{} has more than {most} bytes", shown(path));
        return Err(Failure::Usage(why));
    }
    Ok(bytes)
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_configuration_is_json_or_toml() {
        let expected = json!({"env": {"A": "b"}, "cpu_cores": 2});
        for (text, is_toml) in [
            ("{\"env\": {\"A\": \"b\"}, \"cpu_cores\": 2}", false),
            ("cpu_cores = 2\n[env]\nA = \"b\"\n", true),
            ("cpu_cores = 2\nenv = {A = \"b\"}\n", false),
        ] {
            assert_eq!(parse(text, is_toml), Ok(expected.clone()), "{text}");
        }
        assert!(parse("{", false).is_err() && parse("a", true).is_err());
    }
}
