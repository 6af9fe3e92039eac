//! The entries of a tar stream, one after the other.

use std::io::{self, BufRead, BufReader, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{
    TarError, number,
    pax::Pax,
    sparse::{MAX_PIECES, Next, Piece, Pieces, pairs},
};
use crate::{
    inode::Metadata,
    name::{MAX_PATH, shown},
};

const BLOCK: u64 = 512;
const MAX_PAX: u64 = 1024 * 1024;

/// A stream of entries; what of an entry's content is not read is skipped. Reading gives the content of the entry that
/// was given last, holes filled with zeros.
#[derive(Debug)]
pub struct Reader<R> {
    input: BufReader<R>,
    /// The bytes that were read, and how many there may be.
    position: u64,
    limit: u64,
    /// The bytes of the entry's content, and of the padding after it, that were not read.
    stored: u64,
    padding: u64,
    pieces: Pieces,
    /// How far the content was read.
    at: u64,
    behind: usize,
    global: Pax,
}

/// An entry, without its content. Its name is as the archive has it: any bytes, and perhaps not inside of anything.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Vec<u8>,
    pub meta: Metadata,
    /// Nanoseconds after `meta.mtime`.
    pub nanos: u32,
    pub what: What,
}

/// What an entry is.
#[derive(Clone, Debug)]
pub enum What {
    Directory,
    /// Of so many bytes, and so many of them not in the archive, as they are zero.
    File {
        size: u64,
        holes: u64,
    },
    Symlink(Vec<u8>),
    /// Another name for an earlier entry.
    Link(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// A type that is not known.
    Unknown(u8),
}

impl<R: Read> Reader<R> {
    /// Reads at most `limit` bytes.
    pub fn new(input: R, limit: u64) -> Self {
        Self {
            input: BufReader::with_capacity(128 * 1024, input),
            position: 0,
            limit,
            stored: 0,
            padding: 0,
            pieces: Pieces::default(),
            at: 0,
            behind: 0,
            global: Pax::default(),
        }
    }

    /// The next entry; nothing at the end of the archive.
    ///
    /// # Errors
    /// The stream cannot be read, or is no archive from here on.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would go on after an error"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        let (mut pax, mut name, mut link) = (None, None, None);
        loop {
            let at = self.position;
            let Some(header) = self.header()? else {
                // Nothing follows what an extended header described.
                return if pax.is_none() && name.is_none() && link.is_none() {
                    Ok(None)
                } else {
                    Err(TarError::Truncated)
                };
            };
            match header.as_old().linkflag[0] {
                b'x' => {
                    let records = self.extended(&header, at, MAX_PAX)?;
                    let mut found = self.global.clone();
                    found
                        .add(&records, false)
                        .map_err(|why| TarError::Extended { at, why })?;
                    pax = Some(found);
                }
                b'g' => {
                    let records = self.extended(&header, at, MAX_PAX)?;
                    self.global
                        .add(&records, true)
                        .map_err(|why| TarError::Extended { at, why })?;
                }
                b'L' => name = Some(self.long_name(&header, at)?),
                b'K' => link = Some(self.long_name(&header, at)?),
                _ => {
                    let pax = pax.unwrap_or_else(|| self.global.clone());
                    return self.entry(&header, pax, name, link).map(Some);
                }
            }
        }
    }

    /// Steps over the hole of the content that is next, and gives its length: zero where bytes are next, or nothing.
    pub fn skip_hole(&mut self) -> u64 {
        match self.pieces.at(self.at, &mut self.behind) {
            Next::Zeros(count) => {
                self.at += count;
                count
            }
            Next::Bytes(_) | Next::End => 0,
        }
    }

    /// Reads what follows the archive, so that the stream can tell whether it was whole.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub fn drain(&mut self) -> Result<(), TarError> {
        while self.skip(u64::MAX)? > 0 {}
        Ok(())
    }

    /// The next header; nothing at the end, which is an empty block or that of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let at = self.position;
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (mut unsigned, mut signed) = (0_u32, 0_i32);
        for (index, byte) in header.as_bytes().iter().enumerate() {
            // The checksum itself counts as spaces.
            let byte = if (148..156).contains(&index) {
                b' '
            } else {
                *byte
            };
            unsigned += u32::from(byte);
            signed += i32::from(byte.cast_signed());
        }
        let stated = number::field(&header.as_old().cksum);
        if stated != Some(unsigned.into()) && stated != Some(signed.into()) {
            return Err(TarError::Header(at));
        }
        Ok(Some(header))
    }

    /// The content of an extended header.
    fn extended(&mut self, header: &Header, at: u64, most: u64) -> Result<Vec<u8>, TarError> {
        let size = size(&header.as_old().size).ok_or(TarError::Header(at))?;
        if size > most {
            let why = "is larger than any that is needed";
            return Err(TarError::Extended { at, why });
        }
        let mut content = Vec::new();
        let padded = size.next_multiple_of(BLOCK);
        let read = self.input.by_ref().take(padded).read_to_end(&mut content)?;
        self.count(read)?;
        if (read as u64) < padded {
            return Err(TarError::Truncated);
        }
        content.truncate(size as usize);
        Ok(content)
    }

    fn long_name(&mut self, header: &Header, at: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.extended(header, at, MAX_PATH as u64 + 1)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn entry(
        &mut self,
        header: &Header,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let old = header.as_old();
        let sparse_name = pax.sparse.as_mut().and_then(|sparse| sparse.name.take());
        let name = sparse_name
            .or(long_name)
            .or(pax.path.take())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let failed = |why| TarError::Entry {
            name: shown(&name),
            why,
        };
        let link = long_link.or(pax.link.take()).unwrap_or_else(|| {
            let end = old.linkname.iter().position(|byte| *byte == 0);
            old.linkname[..end.unwrap_or(old.linkname.len())].to_vec()
        });

        let owner = |given: Option<u32>, field| {
            given
                .or_else(|| number::field(field).and_then(|id| u32::try_from(id).ok()))
                .ok_or_else(|| failed("has an owner that is no number below 2^32"))
        };
        let nanos = pax.mtime.map_or(0, |(_, nanos)| nanos);
        let meta = Metadata {
            mode: number::field(&old.mode)
                .map(|mode| (mode & 0o7777) as u32)
                .ok_or_else(|| failed("has a mode that is no number"))?,
            uid: owner(pax.uid, &old.uid)?,
            gid: owner(pax.gid, &old.gid)?,
            mtime: pax
                .mtime
                .map(|(seconds, _)| seconds)
                .or_else(|| number::field(&old.mtime).and_then(|time| i64::try_from(time).ok()))
                .ok_or_else(|| failed("has a time that is no number"))?,
            xattrs: std::mem::take(&mut pax.xattrs),
        };
        let device = || {
            let part = |field: &[u8; 8]| number::field(field).and_then(|id| u32::try_from(id).ok());
            let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
                (Some(ustar), _) => (part(&ustar.dev_major), part(&ustar.dev_minor)),
                (_, Some(gnu)) => (part(&gnu.dev_major), part(&gnu.dev_minor)),
                _ => (Some(0), Some(0)),
            };
            major
                .zip(minor)
                .ok_or_else(|| failed("has device numbers that are none"))
        };
        let what = match old.linkflag[0] {
            0 if name.ends_with(b"/") => What::Directory,
            0 | b'0' | b'7' | b'S' => {
                let stored = pax
                    .size
                    .or_else(|| size(&old.size))
                    .filter(|size| *size <= i64::MAX as u64)
                    .ok_or_else(|| failed("has a size that is no number"))?;
                let size = self.content(header, &pax, stored, &name)?;
                let holes = size - self.stored;
                What::File { size, holes }
            }
            b'1' => What::Link(link),
            b'2' => What::Symlink(link),
            b'3' => device().map(|(major, minor)| What::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| What::BlockDevice(major, minor))?,
            b'5' => What::Directory,
            b'6' => What::Fifo,
            other => What::Unknown(other),
        };
        Ok(Entry {
            name,
            meta,
            nanos,
            what,
        })
    }

    /// Prepares the reading of a file's content; gives its size.
    fn content(
        &mut self,
        header: &Header,
        pax: &Pax,
        stored: u64,
        name: &[u8],
    ) -> Result<u64, TarError> {
        let damaged = || TarError::Entry {
            name: shown(name),
            why: "has a sparse map that is damaged",
        };
        self.stored = stored;
        self.padding = stored.next_multiple_of(BLOCK) - stored;
        (self.at, self.behind) = (0, 0);
        self.pieces = if header.as_old().linkflag[0] == b'S' {
            let (pieces, size) = self.old_sparse(header)?.ok_or_else(damaged)?;
            Pieces::sparse(pieces, size, stored).ok_or_else(damaged)?
        } else if let Some(sparse) = &pax.sparse {
            let size = sparse.size.ok_or_else(damaged)?;
            let pieces = if sparse.in_content {
                self.map_in_content()?
            } else {
                pairs(&sparse.map)
            };
            Pieces::sparse(pieces.ok_or_else(damaged)?, size, self.stored).ok_or_else(damaged)?
        } else {
            Pieces::whole(stored)
        };
        Ok(self.pieces.size)
    }

    /// The map of GNU's own sparse format, which goes on in blocks after the header.
    fn old_sparse(&mut self, header: &Header) -> Result<Option<(Vec<Piece>, u64)>, TarError> {
        let Some(gnu) = header.as_gnu() else {
            return Ok(None);
        };
        let mut pieces = Vec::new();
        let mut valid = add_pieces(&mut pieces, &gnu.sparse);
        let mut more = gnu.is_extended();
        let mut block = GnuExtSparseHeader::new();
        while valid && more {
            if !self.block(block.as_mut_bytes())? {
                return Err(TarError::Truncated);
            }
            valid = add_pieces(&mut pieces, block.sparse());
            more = block.is_extended();
        }
        Ok(size(&gnu.realsize)
            .filter(|_| valid)
            .map(|size| (pieces, size)))
    }

    /// The map at the start of the content of a sparse file of version 1.0: lines of decimal numbers, the first
    /// of which says how many pairs follow, filled up to a block.
    fn map_in_content(&mut self) -> Result<Option<Vec<Piece>>, TarError> {
        let (mut map, mut count, mut line) = (Vec::new(), None, Vec::new());
        while count.is_none_or(|count| (map.len() as u64) < count) {
            let mut block = [0; BLOCK as usize];
            if self.stored < BLOCK {
                return Ok(None);
            }
            if !self.block(&mut block)? {
                return Err(TarError::Truncated);
            }
            self.stored -= BLOCK;
            for byte in block {
                if count.is_some_and(|count| map.len() as u64 == count) {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let Some(number) = number::decimal(&line) else {
                    return Ok(None);
                };
                line.clear();
                match count {
                    None if number <= MAX_PIECES as u64 => count = Some(number * 2),
                    None => return Ok(None),
                    Some(_) => map.push(number),
                }
            }
            // The longest number has twenty digits.
            if line.len() > 20 {
                return Ok(None);
            }
        }
        Ok(pairs(&map))
    }

    /// Fills a block; false at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.count(filled)?;
        Ok(true)
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let (stored, padding) = (self.stored, self.padding);
        (self.stored, self.padding) = (0, 0);
        (self.pieces, self.at, self.behind) = (Pieces::default(), 0, 0);
        // Without what fills the last block up, as `umoci insert` writes it, nothing is lost.
        if self.skip(stored + padding)? < stored {
            return Err(TarError::Truncated);
        }
        Ok(())
    }

    /// Skips so many bytes, or fewer at the end of the stream; gives how many.
    fn skip(&mut self, count: u64) -> Result<u64, TarError> {
        let mut left = count;
        while left > 0 {
            let available = match self.input.fill_buf() {
                Ok(buffer) => buffer.len(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if available == 0 {
                break;
            }
            let skipped = available.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.input.consume(skipped);
            self.count(skipped)?;
            left -= skipped as u64;
        }
        Ok(count - left)
    }

    fn count(&mut self, read: usize) -> Result<(), TarError> {
        self.position += read as u64;
        if self.position > self.limit {
            return Err(TarError::TooLong(self.limit));
        }
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = |count: u64| {
            buffer
                .len()
                .min(usize::try_from(count).unwrap_or(usize::MAX))
        };
        let read = match self.pieces.at(self.at, &mut self.behind) {
            Next::End => 0,
            Next::Zeros(count) => {
                let count = most(count);
                buffer[..count].fill(0);
                count
            }
            Next::Bytes(count) => {
                let count = most(count);
                let read = self.input.read(&mut buffer[..count])?;
                if read == 0 && count > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                // The pieces are exactly what is stored.
                self.stored -= read as u64;
                self.count(read).map_err(io::Error::other)?;
                read
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}

fn size(field: &[u8]) -> Option<u64> {
    number::field(field).and_then(|size| u64::try_from(size).ok())
}

/// Adds the pieces up to the first empty one; false when they are damaged.
fn add_pieces(pieces: &mut Vec<Piece>, found: &[GnuSparseHeader]) -> bool {
    for piece in found.iter().take_while(|piece| !piece.is_empty()) {
        let (Some(offset), Some(length)) = (size(&piece.offset), size(&piece.numbytes)) else {
            return false;
        };
        if pieces.len() == MAX_PIECES {
            return false;
        }
        pieces.push((offset, length));
    }
    true
}
