//! Requests about a VM that runs, and about its configuration.

use reqwest::{Body, Method, Response, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use volant_spec::Name;

use super::{Client, Lines, WAIT};
use crate::failure::Failure;

/// Which lines of a VM's log are wanted.
#[derive(Debug, Default, Serialize)]
pub struct LogQuery {
    pub follow: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Something that happened to a VM.
#[derive(Debug, Deserialize)]
pub struct Event {
    pub time: String,
    pub vm: String,
    pub event: String,
    #[serde(default)]
    pub details: Value,
}

impl Client {
    pub async fn logs(&self, name: &Name, query: &LogQuery) -> Result<Lines<'_>, Failure> {
        let request = self.request(Method::GET, &format!("/vms/{name}/logs"));
        self.lines(request.query(query)).await
    }

    /// Server-Sent Events, line by line.
    pub async fn events(&self, name: Option<&Name>) -> Result<Lines<'_>, Failure> {
        let mut request = self.request(Method::GET, "/events");
        if let Some(name) = name {
            request = request.query(&[("vm", name.as_str())]);
        }
        let request = request.header(header::ACCEPT, "text/event-stream");
        Ok(Lines {
            client: self,
            response: self.send(request).await?,
            received: Vec::new(),
        })
    }

    /// A tar of what is at a path in the guest.
    pub async fn fetch(&self, name: &Name, path: &str, follow: bool) -> Result<Response, Failure> {
        let request = self.request(Method::GET, &format!("/vms/{name}/files"));
        let follow = follow.to_string();
        self.send(request.query(&[("path", path), ("follow", &follow)]))
            .await
    }

    /// Unpacks a tar into a folder of the guest; gives how many entries were made.
    pub async fn unpack(
        &self,
        name: &Name,
        folder: &str,
        keep_owner: bool,
        body: Body,
    ) -> Result<Value, Failure> {
        let keep = keep_owner.to_string();
        let request = self
            .request(Method::PUT, &format!("/vms/{name}/files"))
            .query(&[
                ("path", folder),
                ("keep_owner", &keep),
                ("no_overwrite_dir_non_dir", "true"),
            ])
            .header(header::CONTENT_TYPE, "application/x-tar")
            .body(body);
        self.json(request).await
    }

    pub async fn stats(&self, name: &Name, processes: u32) -> Result<Value, Failure> {
        let request = self.get(&format!("/vms/{name}/stats"));
        self.json(request.query(&[("processes", processes)])).await
    }

    /// Of all VMs that run.
    pub async fn all_stats(&self) -> Result<Value, Failure> {
        self.json(self.get("/vms/stats")).await
    }

    pub async fn wait(&self, name: &Name, until: &str, seconds: u64) -> Result<Value, Failure> {
        let seconds = seconds.to_string();
        let request = self
            .request(Method::GET, &format!("/vms/{name}/wait"))
            .query(&[("for", until), ("timeout", &seconds)])
            .timeout(WAIT);
        self.json(request).await
    }

    pub async fn scale(&self, name: &Name, wanted: &Value) -> Result<Value, Failure> {
        let request = self.request(Method::POST, &format!("/vms/{name}/scale"));
        self.json(request.timeout(WAIT).json(wanted)).await
    }

    pub async fn config(&self, name: &Name, version: Option<u64>) -> Result<Value, Failure> {
        let mut request = self.get(&format!("/vms/{name}/config"));
        if let Some(version) = version {
            request = request.query(&[("version", version)]);
        }
        self.json(request).await
    }

    /// Replaces the configuration; a given version must be the newest.
    pub async fn put_config(
        &self,
        name: &Name,
        config: &Value,
        newest: Option<u64>,
    ) -> Result<Value, Failure> {
        self.change_config(Method::PUT, name, config, "application/json", newest)
            .await
    }

    /// Changes the configuration as RFC 7396 says; a given version must be the newest.
    pub async fn patch_config(
        &self,
        name: &Name,
        patch: &Value,
        newest: Option<u64>,
    ) -> Result<Value, Failure> {
        let kind = "application/merge-patch+json";
        self.change_config(Method::PATCH, name, patch, kind, newest)
            .await
    }

    async fn change_config(
        &self,
        method: Method,
        name: &Name,
        body: &Value,
        kind: &str,
        newest: Option<u64>,
    ) -> Result<Value, Failure> {
        let mut request = self
            .request(method, &format!("/vms/{name}/config"))
            .timeout(WAIT)
            .header(header::CONTENT_TYPE, kind)
            .body(body.to_string());
        if let Some(version) = newest {
            request = request.header(header::IF_MATCH, format!("\"{version}\""));
        }
        self.json(request).await
    }

    pub async fn config_history(&self, name: &Name) -> Result<Value, Failure> {
        self.json(self.get(&format!("/vms/{name}/config/history")))
            .await
    }

    pub async fn rollback(&self, name: &Name, version: u64) -> Result<Value, Failure> {
        let request = self.request(Method::POST, &format!("/vms/{name}/config/rollback"));
        self.json(request.timeout(WAIT).json(&json!({ "version": version })))
            .await
    }

    pub async fn put_secret(
        &self,
        name: &Name,
        secret: &str,
        value: Vec<u8>,
    ) -> Result<(), Failure> {
        let request = self
            .request(Method::PUT, &secret_path(name, secret))
            .timeout(WAIT)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(value);
        self.send(request).await?;
        Ok(())
    }

    pub async fn remove_secret(&self, name: &Name, secret: &str) -> Result<(), Failure> {
        let request = self.request(Method::DELETE, &secret_path(name, secret));
        self.send(request.timeout(WAIT)).await?;
        Ok(())
    }
}

/// A secret's name was checked: nothing in it needs escaping.
fn secret_path(name: &Name, secret: &str) -> String {
    format!("/vms/{name}/secrets/{secret}")
}
