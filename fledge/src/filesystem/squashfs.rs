//! Squashfs: the tree as a tar stream into `tar2sqfs`, which compresses on all processors.
//!
//! Of the two tools that take a stream, `sqfstar` 4.5.1 (Debian 12's) forgets the owner, the time and the
//! attributes of the root folder, and puts the time of the day there instead; so it is this one.

use std::{
    io::{self, BufWriter, Read},
    ops::RangeInclusive,
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    thread,
};

use volant_layers::{EmitError, Entry, Inode, Sink, TarSink, Xattrs, shown};

use super::{Emit, FilesystemError};

const TOOL: &str = "tar2sqfs";

/// The levels of zstd.
pub const LEVELS: RangeInclusive<u32> = 1..=22;

/// Level 15, the tools' own default, takes four to six times as long for an image that is three to six per cent
/// smaller.
pub const DEFAULT_LEVEL: u32 = 9;
/// The tools' own default. Twice as much makes the image one per cent smaller, takes a quarter longer at the high
/// levels, and lets a guest unpack twice as much for each page that it reads.
const BLOCK_SIZE: usize = 128 * 1024;

/// More processors than this are not used, so that the memory stays within 300 MiB.
const MAX_JOBS: usize = 32;
/// Blocks that wait for a processor or to be written: with few, processors wait for each other.
const BACKLOG: usize = 256;

/// What of the tool's words is kept.
const MAX_SAID: usize = 4096;

/// The namespaces that squashfs has.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Writes the image to a file that is there; gives what it cannot keep.
pub(super) fn write(
    level: u32,
    file: PathBuf,
    emit: Emit<'_>,
) -> Result<Vec<String>, FilesystemError> {
    if !LEVELS.contains(&level) {
        return Err(FilesystemError::Level(level));
    }
    let mut tool = Tool::start(level, file)?;
    let stdin = tool.0.stdin.take().expect("it is piped");
    let stderr = tool.0.stderr.take().expect("it is piped");
    let words = thread::spawn(|| last_words(stderr));

    let mut sink = Fitted {
        tar: TarSink::new(BufWriter::with_capacity(BLOCK_SIZE, stdin)),
        warnings: Vec::new(),
    };
    // The tool takes a stream that is cut for a whole one: what counts is whether all of it was written.
    let written = emit(&mut sink).and_then(|()| {
        let out = sink.tar.finish().map_err(FilesystemError::Run)?;
        out.into_inner()
            .map(drop)
            .map_err(|error| FilesystemError::Run(error.into_error()))
    });
    match written {
        // It has ended, and its own words tell why.
        Err(ref error) if is_broken_pipe(error) => {}
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    let status = tool.0.wait().map_err(FilesystemError::Run)?;
    if !status.success() {
        let said = words.join().unwrap_or_default();
        return Err(FilesystemError::Tool { status, said });
    }
    written.map(|()| sink.warnings)
}

fn is_broken_pipe(error: &FilesystemError) -> bool {
    match error {
        FilesystemError::Tree(EmitError::Write { source, .. }) | FilesystemError::Run(source) => {
            source.kind() == io::ErrorKind::BrokenPipe
        }
        _ => false,
    }
}

/// The running tool; killed when dropped.
struct Tool(Child);

impl Tool {
    fn start(level: u32, file: PathBuf) -> Result<Self, FilesystemError> {
        let jobs = thread::available_parallelism().map_or(1, |jobs| jobs.get().min(MAX_JOBS));
        let mut command = Command::new(TOOL);
        command
            .args(["--quiet", "--force", "--no-skip", "--compressor", "zstd"])
            .args(["--comp-extra", &format!("level={level}")])
            .args(["--block-size", &BLOCK_SIZE.to_string()])
            .args(["--num-jobs", &jobs.to_string()])
            .args(["--queue-backlog", &BACKLOG.to_string()])
            .arg(file)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        match command.spawn() {
            Ok(child) => Ok(Self(child)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(FilesystemError::NoTool),
            Err(error) => Err(FilesystemError::Run(error)),
        }
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The end of what the tool said.
fn last_words(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; MAX_SAID];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        kept.drain(..kept.len().saturating_sub(MAX_SAID));
    }
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<String> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| shown(line.trim().as_bytes()))
        .collect();
    if lines.is_empty() {
        return "it said nothing".to_owned();
    }
    lines.join("; ")
}

/// A tar stream of what squashfs can keep: times from 1970 to 2106, attributes of its three namespaces.
struct Fitted<W> {
    tar: TarSink<W>,
    warnings: Vec<String>,
}

impl<W> Fitted<W> {
    /// The inode as squashfs has it, if that is another.
    fn fit(&mut self, entry: &Entry<'_>) -> Option<Inode> {
        let meta = &entry.inode.meta;
        let mtime = meta.mtime.clamp(0, u32::MAX.into());
        let (kept, lost): (Xattrs, Xattrs) = meta
            .xattrs
            .clone()
            .into_iter()
            .partition(|(name, _)| NAMESPACES.iter().any(|space| name.starts_with(space)));
        if mtime == meta.mtime && lost.is_empty() {
            return None;
        }
        for name in lost.keys() {
            self.warnings.push(format!(
                "/{}: squashfs cannot keep its attribute {}",
                shown(entry.path),
                shown(name)
            ));
        }
        let mut inode = entry.inode.clone();
        inode.meta.mtime = mtime;
        inode.meta.xattrs = kept;
        Some(inode)
    }
}

impl<W: io::Write> Sink for Fitted<W> {
    fn node(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        match self.fit(entry) {
            Some(inode) => self.tar.node(&Entry {
                inode: &inode,
                ..*entry
            }),
            None => self.tar.node(entry),
        }
    }

    fn file(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> io::Result<()> {
        match self.fit(entry) {
            Some(inode) => self.tar.file(
                &Entry {
                    inode: &inode,
                    ..*entry
                },
                content,
            ),
            None => self.tar.file(entry, content),
        }
    }

    fn link(&mut self, entry: &Entry<'_>, target: &[u8]) -> io::Result<()> {
        self.tar.link(entry, target)
    }
}
