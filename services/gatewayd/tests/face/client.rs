//! A small HTTP client, without any of the service's own code.

use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::Setup;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The problem's kind and detail; the answer must be one in every way.
    #[track_caller]
    pub fn problem(&self) -> (String, String) {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{self:?}"
        );
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16(), "{json}");
        assert!(json["title"].is_string(), "{json}");
        let kind = json["type"].as_str().unwrap();
        let kind = kind.strip_prefix("https://volantvm.com/problems/").unwrap();
        (kind.to_owned(), json["detail"].as_str().unwrap().to_owned())
    }
}

impl Setup {
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Body::empty()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, Body::empty()).await
    }

    pub async fn post(&self, path: &str, json: &str) -> Answer {
        self.send(Method::POST, path, Body::from(json.to_owned()))
            .await
    }

    /// Sends a request that says to be JSON.
    pub async fn send(&self, method: Method, path: &str, body: Body) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = request
            .header("content-type", "application/json")
            .body(body);
        self.ask(request.unwrap()).await
    }

    pub async fn ask(&self, request: Request<Body>) -> Answer {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        drop(sender);
        connection.abort();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }
}
