//! Broken connections, wrong bytes, slow and refusing servers.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use volant_layers::Layer as _;
use volant_oci::{Client, Credentials, Image, ImageError, Limits, Registries, Trouble, digest_of};

use crate::{
    faulty::{Act, Asked, Faulty, head, send},
    tools::{chain, client, load, loader, quick},
};

/// An image of one plain layer.
struct Fixture {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let layer: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            digest_of(&layer)
        )
        .into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",
            "digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar",
            "digest":"{}","size":{}}}]}}"#,
            digest_of(&config),
            config.len(),
            digest_of(&layer),
            layer.len()
        )
        .into_bytes();
        Self {
            layer,
            config,
            manifest,
        }
    }

    /// A server of this image, which does `act` when it is asked for the layer.
    fn serve(
        &self,
        act: impl Fn(usize, Option<u64>, &mut TcpStream, &[u8]) + Send + Sync + 'static,
    ) -> Faulty {
        let mut acts: BTreeMap<String, Act> = BTreeMap::new();
        for (path, body) in [
            ("manifests/v1".to_owned(), &self.manifest),
            (format!("blobs/{}", digest_of(&self.config)), &self.config),
        ] {
            let body = body.clone();
            let plain = move |_: &Asked, stream: &mut TcpStream| send(stream, "200 OK", "", &body);
            acts.insert(format!("/v2/app/{path}"), Box::new(plain));
        }
        let layer = self.layer.clone();
        acts.insert(
            format!("/v2/app/blobs/{}", digest_of(&self.layer)),
            Box::new(move |asked, stream| act(asked.number, asked.from, stream, &layer)),
        );
        Faulty::start(acts)
    }

    fn path(&self) -> String {
        digest_of(&self.layer).to_string()
    }
}

fn layer_of(image: &Image) -> Vec<u8> {
    let mut plain = Vec::new();
    image.layers[0]
        .open()
        .unwrap()
        .read_to_end(&mut plain)
        .unwrap();
    plain
}

/// From `from` on, as a server that knows ranges.
fn partial(stream: &mut TcpStream, from: u64, body: &[u8]) {
    let range = format!(
        "Content-Range: bytes {from}-{}/{}\r\n",
        body.len() - 1,
        body.len()
    );
    let from = usize::try_from(from).unwrap();
    send(stream, "206 Partial Content", &range, &body[from..]);
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let image = Fixture::new();
    let server = image.serve(|number, from, stream, body| match (number, from) {
        (1, _) => {
            head(stream, "200 OK", "", body.len());
            let _ = stream.write_all(&body[..100_000]);
        }
        (_, Some(from)) => partial(stream, from, body),
        (_, None) => send(stream, "200 OK", "", body),
    });
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(
        &loader(client(), dir.path()),
        &format!("{}/app:v1", server.host),
    )
    .await;
    assert!(layer_of(&loaded.unwrap()) == image.layer);
    let asked = server.seen(&image.path());
    assert_eq!(asked.len(), 2);
    assert!(asked[1].is_some_and(|from| from > 50_000), "{asked:?}");
    let left = std::fs::read_dir(dir.path().join("partial"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "nothing half is left");
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_is_read_from_the_start() {
    let image = Fixture::new();
    let server = image.serve(|number, _, stream, body| {
        head(stream, "200 OK", "", body.len());
        let _ = stream.write_all(if number == 1 { &body[..100_000] } else { body });
    });
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(
        &loader(client(), dir.path()),
        &format!("{}/app:v1", server.host),
    )
    .await;
    assert!(layer_of(&loaded.unwrap()) == image.layer);
}

#[tokio::test]
async fn another_run_goes_on_with_what_an_earlier_one_left() {
    let image = Fixture::new();
    let server = image.serve(|_, from, stream, body| match from {
        Some(from) => partial(stream, from, body),
        None => send(stream, "200 OK", "", body),
    });
    let dir = tempfile::tempdir().unwrap();
    let partials = dir.path().join("partial");
    std::fs::create_dir_all(&partials).unwrap();
    let left = partials.join(digest_of(&image.layer).hex());
    std::fs::write(&left, &image.layer[..200_000]).unwrap();
    let text = format!("{}/app:v1", server.host);
    let loaded = load(&loader(client(), dir.path()), &text).await.unwrap();
    assert!(layer_of(&loaded) == image.layer);
    assert_eq!(server.seen(&image.path()), [Some(200_000)]);

    // What is left may be wrong: then it is fetched from the start.
    std::fs::remove_dir_all(dir.path().join("blobs")).unwrap();
    std::fs::write(&left, vec![7; 1000]).unwrap();
    let loaded = load(&loader(client(), dir.path()), &text).await.unwrap();
    assert!(layer_of(&loaded) == image.layer);
    assert_eq!(server.seen(&image.path())[1..], [Some(1000), None]);
}

#[tokio::test]
async fn two_runs_at_once_download_once() {
    let image = Fixture::new();
    let server = image.serve(|_, _, stream, body| send(stream, "200 OK", "", body));
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{}/app:v1", server.host);
    let (one, two) = (loader(client(), dir.path()), loader(client(), dir.path()));
    let (one, two) = tokio::join!(load(&one, &text), load(&two, &text));
    assert!(layer_of(&one.unwrap()) == layer_of(&two.unwrap()));
    assert_eq!(server.seen(&image.path()).len(), 1);
}

#[tokio::test]
async fn wrong_bytes_never_reach_the_cache() {
    let image = Fixture::new();
    let server = image.serve(|_, _, stream, body| send(stream, "200 OK", "", &vec![1; body.len()]));
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(
        &loader(client(), dir.path()),
        &format!("{}/app:v1", server.host),
    )
    .await;
    let error = loaded.unwrap_err();
    assert!(chain(&error).contains("digest"), "{error}");
    let there: Vec<_> = std::fs::read_dir(dir.path().join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, [digest_of(&image.config).hex()]);
}

#[tokio::test]
async fn more_bytes_than_announced_are_refused() {
    let image = Fixture::new();
    let server = image.serve(|_, _, stream, body| {
        send(stream, "200 OK", "", &[body, b"and more"].concat());
    });
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(
        &loader(client(), dir.path()),
        &format!("{}/app:v1", server.host),
    )
    .await;
    let text = chain(&loaded.unwrap_err());
    assert!(text.contains("larger than 300000 bytes"), "{text}");
}

#[tokio::test]
async fn a_busy_server_is_asked_again_and_one_that_stays_so_is_given_up() {
    let image = Fixture::new();
    let server = image.serve(|number, _, stream, body| match number {
        1 => send(stream, "429 Too Many Requests", "Retry-After: 0\r\n", b""),
        2 => send(stream, "503 Service Unavailable", "", b""),
        _ => send(stream, "200 OK", "", body),
    });
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(
        &loader(client(), dir.path()),
        &format!("{}/app:v1", server.host),
    )
    .await;
    assert!(layer_of(&loaded.unwrap()) == image.layer);

    let always = |_: &Asked, stream: &mut TcpStream| {
        let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}"#;
        send(stream, "429 Too Many Requests", "Retry-After: 0\r\n", body);
    };
    let server =
        Faulty::start([("/v2/app/manifests/v1".to_owned(), Box::new(always) as Act)].into());
    let error = load(
        &loader(client(), dir.path()),
        &format!("{}/app:v1", server.host),
    )
    .await;
    let text = chain(&error.unwrap_err());
    assert!(
        text.contains("429") && text.contains("pull rate limit"),
        "{text}"
    );
    assert_eq!(server.seen("manifests/v1").len(), 3);
}

#[tokio::test]
async fn a_server_that_stops_sending_is_given_up() {
    let image = Fixture::new();
    let server = image.serve(|_, _, stream, body| {
        head(stream, "200 OK", "", body.len());
        let _ = stream.write_all(&body[..1000]);
        // Until the client hangs up.
        let _ = stream.read(&mut [0]);
    });
    let limits = Limits {
        window: Duration::from_millis(200),
        attempts: 1,
        ..quick()
    };
    let client = Client::new(Credentials::none(), Registries::default(), limits);
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(
        &loader(client, dir.path()),
        &format!("{}/app:v1", server.host),
    )
    .await;
    let text = chain(&loaded.unwrap_err());
    assert!(text.contains("was given up"), "{text}");
}

#[tokio::test]
async fn an_endless_manifest_and_one_of_another_digest_are_refused() {
    let huge = |_: &Asked, stream: &mut TcpStream| {
        send(stream, "200 OK", "", &vec![b' '; 5 * 1024 * 1024]);
    };
    let other = |_: &Asked, stream: &mut TcpStream| send(stream, "200 OK", "", b"{}");
    let digest = digest_of(b"something else");
    let server = Faulty::start(
        [
            ("/v2/app/manifests/huge".to_owned(), Box::new(huge) as Act),
            (
                format!("/v2/app/manifests/{digest}"),
                Box::new(other) as Act,
            ),
        ]
        .into(),
    );
    let ask = async |text: String| client().manifest(&text.parse().unwrap()).await.unwrap_err();
    let error = ask(format!("{}/app:huge", server.host)).await;
    assert!(
        matches!(error.trouble(), Trouble::TooLarge { .. }),
        "{}",
        chain(&error)
    );
    let error = ask(format!("{}/app@{digest}", server.host)).await;
    assert!(
        matches!(error.trouble(), Trouble::Digest { .. }),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn layers_that_cannot_be_read_are_named_before_anything_is_downloaded() {
    let mut image = Fixture::new();
    for (kind, word) in [
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "not in the image",
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "not in the image",
        ),
        ("application/x-lzma", "not known"),
    ] {
        let plain = "application/vnd.oci.image.layer.v1.tar";
        let text = String::from_utf8(Fixture::new().manifest).unwrap();
        image.manifest = text.replace(plain, kind).into_bytes();
        let server = image.serve(|_, _, stream, body| send(stream, "200 OK", "", body));
        let dir = tempfile::tempdir().unwrap();
        let loaded = load(
            &loader(client(), dir.path()),
            &format!("{}/app:v1", server.host),
        )
        .await;
        let error = loaded.unwrap_err();
        assert!(matches!(error, ImageError::LayerType { .. }));
        let text = error.to_string();
        assert!(text.contains(kind) && text.contains(word), "{text}");
        assert!(server.seen(&image.path()).is_empty());
    }
}

#[tokio::test]
async fn a_blob_damaged_in_the_cache_is_found_while_it_is_read_and_fetched_anew() {
    let image = Fixture::new();
    let server = image.serve(|_, _, stream, body| send(stream, "200 OK", "", body));
    let dir = tempfile::tempdir().unwrap();
    let loader = loader(client(), dir.path());
    let text = format!("{}/app:v1", server.host);
    load(&loader, &text).await.unwrap();
    let path = dir
        .path()
        .join("blobs/sha256")
        .join(digest_of(&image.layer).hex());
    std::fs::write(&path, vec![0; image.layer.len()]).unwrap();
    let loaded = load(&loader, &text).await.unwrap();
    let error = std::io::copy(&mut loaded.layers[0].open().unwrap(), &mut std::io::sink());
    assert!(error.unwrap_err().to_string().contains("try again"));
    assert!(layer_of(&load(&loader, &text).await.unwrap()) == image.layer);
}
