//! A tiny web server, well-behaved and not.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Duration, sleep},
};

/// What is at a path.
#[derive(Clone, Debug)]
pub enum Page {
    Body(Vec<u8>),
    /// The bytes, then the end, though more were announced.
    Truncated(Vec<u8>),
    /// Without an announced length, for ever, as fast as it is read.
    Endless,
    /// A byte now and then, for ever.
    Trickle,
    /// The head, then nothing.
    Stuck,
    Redirect(String),
    /// Announces so many bytes, and sends none.
    Announced(u64),
}

#[derive(Clone, Debug)]
pub struct Web {
    pub at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Web {
    pub async fn serve<const N: usize>(pages: [(&str, Page); N]) -> Self {
        let pages: HashMap<_, _> = pages.map(|(path, page)| (path.to_owned(), page)).into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let web = Self {
            at,
            asked: Arc::clone(&asked),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, pages.clone(), Arc::clone(&asked)));
            }
        });
        web
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// The paths that were asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(
    mut stream: TcpStream,
    pages: HashMap<String, Page>,
    asked: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().push(path.clone());
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{rest}\r\n");
    let length = |n: u64| ok(&format!("content-length: {n}\r\n"));
    let mut say = async |text: &[u8]| stream.write_all(text).await;
    match pages.get(&path) {
        None => say(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await,
        Some(Page::Body(body)) => {
            say(length(body.len() as u64).as_bytes()).await?;
            say(body).await
        }
        Some(Page::Truncated(body)) => {
            say(length(body.len() as u64 + 7).as_bytes()).await?;
            say(body).await
        }
        Some(Page::Endless) => {
            say(ok("").as_bytes()).await?;
            loop {
                say(&[b' '; 64 * 1024]).await?;
            }
        }
        Some(Page::Trickle) => {
            say(ok("").as_bytes()).await?;
            loop {
                say(b" ").await?;
                sleep(Duration::from_millis(10)).await;
            }
        }
        Some(Page::Stuck) => {
            say(ok("").as_bytes()).await?;
            std::future::pending().await
        }
        Some(Page::Redirect(to)) => {
            let head = format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            say(head.as_bytes()).await
        }
        Some(Page::Announced(n)) => say(length(*n).as_bytes()).await,
    }
}
