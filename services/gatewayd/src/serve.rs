//! HTTP/1.1 on the Unix socket: connections taken, bounded, and ended.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use volant_service::Idle;

/// Connections at once; more wait in the socket's queue.
const CONNECTIONS: usize = 256;
/// What a client may take to send the head of a request, also of the next one on its connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// What answers under way may take once the service ends; below systemd's 90 seconds.
const DRAIN: Duration = Duration::from_secs(60);
/// How long connections may stay that ask for nothing once the service ends.
const LINGER: Duration = Duration::from_millis(500);

/// Serves until `end` resolves and what is under way is done, or had its time; gives what `end` gave. `ending` is cancelled
/// when it resolves.
pub async fn serve<T>(
    listener: UnixListener,
    app: Router,
    idle: Idle,
    ending: CancellationToken,
    end: impl Future<Output = T>,
) -> T {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(end);
    let ended = loop {
        let taken = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            taken = taken => taken,
            ended = &mut end => break ended,
        };
        match accepted {
            Ok((stream, _)) => {
                let (app, ending) = (app.clone(), ending.clone());
                connections.spawn(async move {
                    let _place = place;
                    connection(stream, app, ending).await;
                });
            }
            Err(error) => {
                tracing::warn!("cannot take a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    drop(listener);
    ending.cancel();
    connections.close();
    let quiet = async {
        tokio::select! {
            () = connections.wait() => {}
            () = idle.wait(LINGER) => {}
        }
        idle.wait(Duration::ZERO).await;
    };
    if tokio::time::timeout(DRAIN, quiet).await.is_err() {
        tracing::warn!("requests that did not end in time are cut off");
    }
    ended
}

async fn connection(stream: UnixStream, app: Router, ending: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .with_upgrades();
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!("a connection ended: {error}");
    }
}
