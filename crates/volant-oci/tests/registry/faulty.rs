//! A registry that misbehaves as it is told: HTTP by hand, one request a connection.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Which request for this path it is, from 1.
    pub number: usize,
    /// Where its range starts.
    pub from: Option<u64>,
    pub authorization: Option<String>,
    pub body: String,
}

/// What to do with a request for a path, which is found without its query.
pub type Act = Box<dyn Fn(&Asked, &mut TcpStream) + Send + Sync>;

pub struct Faulty {
    pub host: String,
    seen: Arc<Mutex<Vec<Asked>>>,
}

impl Faulty {
    pub fn start(acts: BTreeMap<String, Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, acts)
    }

    pub fn on(listener: TcpListener, acts: BTreeMap<String, Act>) -> Self {
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let acts = Arc::new(acts);
        let record = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (acts, record) = (Arc::clone(&acts), Arc::clone(&record));
                std::thread::spawn(move || answer(stream, &acts, &record));
            }
        });
        Self { host, seen }
    }

    /// The requests for paths that have this in them.
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter(|asked| asked.path.contains(part))
            .cloned()
            .collect()
    }

    /// Where the ranges of such requests start.
    pub fn seen(&self, part: &str) -> Vec<Option<u64>> {
        self.asked(part).iter().map(|asked| asked.from).collect()
    }
}

fn answer(mut stream: TcpStream, acts: &BTreeMap<String, Act>, record: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = || {
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        line.trim_end().to_owned()
    };
    let first = line();
    let mut words = first.split(' ').map(str::to_owned);
    let mut asked = Asked {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        number: 0,
        from: None,
        authorization: None,
        body: String::new(),
    };
    let mut length = 0;
    loop {
        let header = line();
        let Some((name, value)) = header.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => from_range(&mut asked, value),
            "authorization" => asked.authorization = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    asked.body = String::from_utf8_lossy(&body).into_owned();
    {
        let mut record = record.lock().unwrap();
        let same = record.iter().filter(|seen| seen.path == asked.path);
        asked.number = same.count() + 1;
        record.push(asked.clone());
    }
    let path = asked.path.split('?').next().unwrap();
    match acts.get(path) {
        Some(act) => act(&asked, &mut stream),
        None if path == "/v2/" => send(&mut stream, "200 OK", "", b"{}"),
        None => send(&mut stream, "404 Not Found", "", b""),
    }
}

fn from_range(asked: &mut Asked, value: &str) {
    let from = value.trim_start_matches("bytes=").trim_end_matches('-');
    asked.from = from.parse().ok();
}

pub fn head(stream: &mut TcpStream, status: &str, more: &str, length: usize) {
    let head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n");
    let _ = stream.write_all(head.as_bytes());
}

pub fn send(stream: &mut TcpStream, status: &str, more: &str, body: &[u8]) {
    head(stream, status, more, body.len());
    let _ = stream.write_all(body);
}
