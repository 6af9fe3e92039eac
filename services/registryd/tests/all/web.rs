//! A tiny web server, well-behaved and not.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Duration, sleep},
};

/// What is at a path.
#[derive(Clone, Debug)]
pub enum Page {
    /// Whatever range is asked for.
    Body(Vec<u8>),
    /// The range that is asked for, but at most so many bytes of it at a time; then the connection is cut.
    Piecewise(Vec<u8>, usize),
    /// An answer other than 200, without a body.
    Status(u16),
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
    /// As a server of HTTP/1.0 sends it: the end of the connection is the end of the body.
    Plain(Vec<u8>),
    /// So many times that status, then the page that follows.
    Busy(u16, usize, Box<Page>),
    /// A KiB each 100 ms, whatever range is asked for.
    Paced(Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct Web {
    pub at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    ranges: Arc<Mutex<Vec<String>>>,
    sent: Arc<AtomicUsize>,
    pages: Arc<Mutex<HashMap<String, Page>>>,
}

impl Web {
    pub async fn serve<const N: usize>(pages: [(&str, Page); N]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self {
            at: listener.local_addr().unwrap(),
            asked: Arc::default(),
            ranges: Arc::default(),
            sent: Arc::default(),
            pages: Arc::default(),
        };
        for (path, page) in pages {
            web.put(path, page);
        }
        let served = web.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, served.clone()));
            }
        });
        web
    }

    /// From now on this is at that path.
    pub fn put(&self, path: &str, page: Page) {
        self.pages.lock().unwrap().insert(path.to_owned(), page);
    }

    fn page(&self, path: &str) -> Option<Page> {
        let mut pages = self.pages.lock().unwrap();
        let now = pages.get(path).cloned()?;
        match &now {
            Page::Busy(_, 0, then) => return Some(Page::clone(then)),
            Page::Busy(status, n, then) => {
                let next = Page::Busy(*status, n - 1, then.clone());
                pages.insert(path.to_owned(), next);
            }
            _ => {}
        }
        Some(now)
    }

    /// How many bytes of bodies were sent so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// The ranges that were asked for so far.
    pub fn ranges(&self) -> Vec<String> {
        self.ranges.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// The paths that were asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(mut stream: TcpStream, web: Web) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    web.asked.lock().unwrap().push(path.clone());
    let range = head
        .lines()
        .find_map(|line| line.strip_prefix("range: "))
        .map(str::to_owned);
    web.ranges.lock().unwrap().extend(range.clone());
    let page = web.page(&path);
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{rest}\r\n");
    let length = |n: u64| ok(&format!("content-length: {n}\r\n"));
    let mut say = async |text: &[u8]| stream.write_all(text).await;
    match &page {
        None => say(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await,
        Some(Page::Status(status)) => {
            say(format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").as_bytes()).await
        }
        Some(Page::Body(body)) => {
            web.sent.fetch_add(body.len(), Ordering::SeqCst);
            say(length(body.len() as u64).as_bytes()).await?;
            say(body).await
        }
        Some(Page::Piecewise(body, most)) => {
            let from = range.and_then(|range| {
                let from = range.strip_prefix("bytes=")?.strip_suffix('-')?;
                from.parse::<usize>().ok()
            });
            let (status, from) = match from {
                Some(from) if from < body.len() => ("206 Partial Content", from),
                Some(_) => ("416 Range Not Satisfiable", body.len()),
                None => ("200 OK", 0),
            };
            let rest = &body[from..];
            let head = format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{}\r\n\r\n",
                rest.len(),
                body.len().saturating_sub(1),
                body.len()
            );
            say(head.as_bytes()).await?;
            let piece = &rest[..rest.len().min(*most)];
            web.sent.fetch_add(piece.len(), Ordering::SeqCst);
            say(piece).await
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
        Some(Page::Plain(body)) => {
            say(b"HTTP/1.0 200 OK\r\n\r\n").await?;
            say(body).await
        }
        Some(Page::Busy(status, ..)) => {
            say(format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").as_bytes()).await
        }
        Some(Page::Paced(body)) => {
            say(length(body.len() as u64).as_bytes()).await?;
            for piece in body.chunks(1024) {
                say(piece).await?;
                sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        }
    }
}
