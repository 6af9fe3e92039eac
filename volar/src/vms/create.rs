//! `volar vms create`: the request that what was typed makes.

use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::config::file;
use crate::{
    args::{Create, Given, Health, Machine, Workload},
    client::{NewSecret, NewVm},
    failure::Failure,
};

/// Reads the files that are named in it.
pub fn request(create: Create) -> Result<NewVm, Failure> {
    let from_stdin = create.workload.secret.iter().map(|(_, file)| file);
    let from_stdin = from_stdin
        .chain(&create.machine.config)
        .chain(&create.machine.cloud_init)
        .filter(|file| file.as_path() == Path::new("-"));
    if from_stdin.count() > 1 {
        let why = "standard input can be read for one of them alone";
        return Err(Failure::Usage(why.to_owned()));
    }
    let mut config = match &create.machine.config {
        Some(file) => file::config(file)?,
        None => json!({}),
    };
    let secrets = create
        .workload
        .secret
        .iter()
        .map(|(name, file)| {
            Ok(NewSecret {
                name: name.clone(),
                value_base64: BASE64_STANDARD.encode(file::secret(file)?),
            })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let user_data = create.machine.cloud_init.as_deref().map(file::text);
    let fields = config
        .as_object_mut()
        .ok_or_else(|| Failure::Usage("the configuration is no object".to_owned()))?;
    workload(fields, create.workload)?;
    machine(fields, create.machine, user_data.transpose()?)?;
    if let Some(check) = health(create.health) {
        fields.insert("health_check".to_owned(), check);
    }
    if !create.command.is_empty() {
        fields.insert("entrypoint".to_owned(), json!(create.command));
    }
    if fields.is_empty() {
        config = Value::Null;
    }
    Ok(NewVm {
        name: create.name,
        plugin: create.plugin,
        cpu_cores: create.cpu,
        memory_mb: create.memory,
        vmm: create.vmm,
        start: !create.no_start,
        enable: create.enable,
        config,
        secrets,
    })
}

fn workload(fields: &mut Map<String, Value>, workload: Workload) -> Result<(), Failure> {
    for (key, value) in workload.env {
        object(fields, "env")?.insert(key, value.into());
    }
    for (key, value) in [
        ("restart", workload.restart),
        ("user", workload.user),
        ("workdir", workload.workdir),
    ] {
        if let Some(value) = value {
            fields.insert(key.to_owned(), value.into());
        }
    }
    for limit in workload.rlimit {
        let mut value = Map::new();
        for (key, number) in [("soft", limit.soft), ("hard", limit.hard)] {
            if let Some(number) = number {
                value.insert(key.to_owned(), number.into());
            }
        }
        object(fields, "rlimits")?.insert(limit.name, value.into());
    }
    for (name, _) in &workload.secret {
        secret(fields, name, None)?;
    }
    for (variable, name) in &workload.secret_env {
        secret(fields, name, Some(variable))?;
    }
    Ok(())
}

/// Names a secret once, whatever is said of it.
fn secret(
    fields: &mut Map<String, Value>,
    name: &str,
    variable: Option<&str>,
) -> Result<(), Failure> {
    let secrets = list(fields, "secrets")?;
    let known = secrets.iter_mut().find(|secret| secret["name"] == name);
    match (known, variable) {
        (Some(known), Some(variable)) => known["env"] = variable.into(),
        (Some(_), None) => {}
        (None, Some(variable)) => secrets.push(json!({"name": name, "env": variable})),
        (None, None) => secrets.push(json!({"name": name})),
    }
    Ok(())
}

fn machine(
    fields: &mut Map<String, Value>,
    machine: Machine,
    user_data: Option<String>,
) -> Result<(), Failure> {
    if let Some(size) = machine.disk {
        object(fields, "root_disk")?.insert("size_mb".to_owned(), size.into());
    }
    for given in machine.volume {
        let volumes = list(fields, "volumes")?;
        let volume = match given {
            Given::Disk {
                name,
                target,
                size_mb,
                read_only,
            } => {
                let mut disk = json!({"name": name, "target": target, "size_mb": size_mb});
                if read_only {
                    disk["read_only"] = true.into();
                }
                disk
            }
            Given::Folder { host_path, target } => json!({
                "name": folder_name(&target, volumes), "target": target, "host_path": host_path, "read_only": true,
            }),
        };
        volumes.push(volume);
    }
    if let Some(init) = machine.init {
        fields.insert("init".to_owned(), init.into());
    }
    if let Some(content) = user_data {
        object(fields, "cloud_init")?.insert("user_data".to_owned(), json!({"content": content}));
    }
    if let Some(percent) = machine.cpu_quota {
        object(fields, "limits")?.insert("cpu_quota_percent".to_owned(), percent.into());
    }
    if !machine.device.is_empty() {
        object(fields, "devices")?.insert("pci".to_owned(), json!(machine.device));
    }
    Ok(())
}

fn health(health: Health) -> Option<Value> {
    let mut check = match (health.health_cmd, health.health_http, health.health_tcp) {
        (Some(command), _, _) => json!({"type": "exec", "command": ["/bin/sh", "-c", command]}),
        (_, Some(endpoint), _) => json!({"type": "http", "endpoint": endpoint}),
        (_, _, Some(port)) => json!({"type": "tcp", "port": port}),
        (None, None, None) => return None,
    };
    for (key, time) in [
        ("interval_ms", health.health_interval),
        ("timeout_ms", health.health_timeout),
        ("start_period_ms", health.health_start_period),
    ] {
        if let Some(time) = time {
            check[key] = json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
    }
    if let Some(retries) = health.health_retries {
        check["retries"] = retries.into();
    }
    Some(check)
}

/// A name for a folder of the host: its target's, as far as that can be a name.
fn folder_name(target: &str, volumes: &[Value]) -> String {
    let name: String = target
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let name = name.trim_matches('-');
    let name = name
        .get(..name.len().min(48))
        .unwrap_or_default()
        .trim_matches('-');
    let name = if name.is_empty() { "host" } else { name };
    let is_taken = |name: &str| volumes.iter().any(|volume| volume["name"] == name);
    let mut free = name.to_owned();
    let mut count = 2;
    while is_taken(&free) {
        free = format!("{name}-{count}");
        count += 1;
    }
    free
}

fn object<'a>(
    fields: &'a mut Map<String, Value>,
    key: &str,
) -> Result<&'a mut Map<String, Value>, Failure> {
    let value = fields.entry(key).or_insert_with(|| json!({}));
    value
        .as_object_mut()
        .ok_or_else(|| Failure::Usage(format!("'{key}' of the configuration is no object")))
}

fn list<'a>(fields: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, Failure> {
    let value = fields.entry(key).or_insert_with(|| json!([]));
    value
        .as_array_mut()
        .ok_or_else(|| Failure::Usage(format!("'{key}' of the configuration is no list")))
}
