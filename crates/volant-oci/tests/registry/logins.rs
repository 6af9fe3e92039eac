//! Tokens, and that no login goes to whom it is not meant for.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
};

use volant_oci::{BlobSource, Client, Credentials, Reference, Registries, Trouble, digest_of};

use crate::{
    faulty::{Act, Asked, Faulty, send},
    tools::{chain, quick},
};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;

/// A registry that gives its manifest for the token number `good` alone; its token server counts.
fn registry(good: usize) -> Faulty {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"reg\"\r\n");
    let manifest = move |asked: &Asked, stream: &mut TcpStream| {
        let wanted = format!("Bearer token-{good}");
        match &asked.authorization {
            Some(has) if *has == wanted => send(stream, "200 OK", "", MANIFEST),
            _ => send(stream, "401 Unauthorized", &challenge, b""),
        }
    };
    let count = std::sync::atomic::AtomicUsize::new(0);
    let token = move |_: &Asked, stream: &mut TcpStream| {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        send(
            stream,
            "200 OK",
            "",
            format!(r#"{{"token":"token-{number}"}}"#).as_bytes(),
        );
    };
    let acts: [(String, Act); 2] = [
        ("/v2/app/manifests/v1".into(), Box::new(manifest)),
        ("/token".into(), Box::new(token)),
    ];
    Faulty::on(listener, acts.into())
}

fn client(dir: &Path, auths: &str) -> Client {
    let path = dir.join("auth.json");
    std::fs::write(&path, format!(r#"{{"auths":{{{auths}}}}}"#)).unwrap();
    Client::new(Credentials::file(path), Registries::default(), quick())
}

fn reference(server: &Faulty) -> Reference {
    format!("{}/app:v1", server.host).parse().unwrap()
}

#[tokio::test]
async fn a_token_is_fetched_once_with_the_password() {
    let server = registry(1);
    let dir = tempfile::tempdir().unwrap();
    // bob:s3cret
    let client = client(
        dir.path(),
        &format!(r#""{}":{{"auth":"Ym9iOnMzY3JldA=="}}"#, server.host),
    );
    let reference = reference(&server);
    for _ in 0..2 {
        assert_eq!(client.manifest(&reference).await.unwrap().bytes, MANIFEST);
    }
    let tokens = server.asked("/token");
    assert_eq!(tokens.len(), 1);
    assert_eq!(
        tokens[0].authorization.as_deref(),
        Some("Basic Ym9iOnMzY3JldA==")
    );
    let path = &tokens[0].path;
    assert!(
        path.contains("service=reg") && path.contains("scope=repository%3Aapp%3Apull"),
        "{path}"
    );
    let manifests = server.asked("/manifests/");
    assert!(manifests.iter().all(|asked| {
        asked
            .authorization
            .as_ref()
            .is_none_or(|text| text.starts_with("Bearer "))
    }));
}

#[tokio::test]
async fn a_token_that_grew_old_is_renewed_once() {
    let server = registry(2);
    let dir = tempfile::tempdir().unwrap();
    let client = client(dir.path(), "");
    let reference = reference(&server);
    // The first token is refused, as an old one would be.
    let error = client.manifest(&reference).await.unwrap_err();
    assert!(
        matches!(error.trouble(), Trouble::Unauthorized { .. }),
        "{}",
        chain(&error)
    );
    assert_eq!(client.manifest(&reference).await.unwrap().bytes, MANIFEST);
    assert_eq!(server.asked("/token").len(), 2);
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let server = registry(1);
    let dir = tempfile::tempdir().unwrap();
    let client = client(
        dir.path(),
        &format!(r#""{}":{{"identitytoken":"refresh-me"}}"#, server.host),
    );
    client.manifest(&reference(&server)).await.unwrap();
    let asked = &server.asked("/token")[0];
    assert_eq!(asked.method, "POST");
    assert!(
        asked.body.contains("grant_type=refresh_token"),
        "{}",
        asked.body
    );
    assert!(
        asked.body.contains("refresh_token=refresh-me"),
        "{}",
        asked.body
    );
    assert_eq!(asked.authorization, None);
}

#[tokio::test]
async fn the_storage_that_a_registry_points_to_does_not_see_the_login() {
    let content = b"content".to_vec();
    let digest = digest_of(&content);
    let body = content.clone();
    let storage = move |asked: &Asked, stream: &mut TcpStream| match asked.method.as_str() {
        "PUT" => send(stream, "201 Created", "", b""),
        _ => send(stream, "200 OK", "", &body),
    };
    let storage = Faulty::start([("/storage".to_owned(), Box::new(storage) as Act)].into());
    let to = format!("Location: http://{}/storage\r\n", storage.host);
    let guarded = |status: &'static str, more: String| -> Act {
        Box::new(move |asked, stream| match asked.authorization {
            Some(_) if asked.method != "HEAD" => send(stream, status, &more, b""),
            Some(_) => send(stream, "404 Not Found", "", b""),
            None => send(
                stream,
                "401 Unauthorized",
                "WWW-Authenticate: Basic realm=\"x\"\r\n",
                b"",
            ),
        })
    };
    let acts = [
        (
            format!("/v2/app/blobs/{digest}"),
            guarded("307 Temporary Redirect", to.clone()),
        ),
        (
            "/v2/app/blobs/uploads/".to_owned(),
            guarded("202 Accepted", to),
        ),
    ];
    let server = Faulty::start(acts.into());
    let dir = tempfile::tempdir().unwrap();
    let client = client(
        dir.path(),
        &format!(r#""{}":{{"auth":"Ym9iOnMzY3JldA=="}}"#, server.host),
    );
    let reference = reference(&server);
    let mut stream = client.blob(&reference, &digest, 7, 0).await.unwrap();
    assert_eq!(stream.chunk().await.unwrap().unwrap(), content);
    let source = BlobSource::Bytes(content.into());
    assert!(
        client
            .push_blob(&reference, &digest, &source, &|_| {})
            .await
            .unwrap()
    );

    assert!(
        server
            .asked("/v2/app/")
            .iter()
            .any(|asked| asked.authorization.is_some())
    );
    let seen = storage.asked("/storage");
    assert_eq!(seen.len(), 2);
    assert!(
        seen.iter().all(|asked| asked.authorization.is_none()),
        "{seen:?}"
    );
    assert!(
        seen[1]
            .path
            .contains(&format!("digest=sha256%3A{}", digest.hex()))
    );
}
