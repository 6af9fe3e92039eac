//! Layers as they lie on the disk: a stretch of a file, compressed or not, checked while it is read.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take},
    path::PathBuf,
};

use volant_layers::Layer;
use volant_spec::Digest;

use crate::verify::{Hasher, HashingReader};

const BUFFER: usize = 128 * 1024;

/// A stretch of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub path: PathBuf,
    pub offset: u64,
    pub size: u64,
}

impl Extent {
    /// A whole file, of whatever size it has.
    pub fn whole(path: PathBuf) -> io::Result<Self> {
        let size = std::fs::metadata(&path)?.len();
        let offset = 0;
        Ok(Self { path, offset, size })
    }

    pub fn open(&self) -> io::Result<Take<File>> {
        let mut file = File::open(&self.path)?;
        if self.offset > 0 {
            file.seek(SeekFrom::Start(self.offset))?;
        }
        Ok(file.take(self.size))
    }

    /// All of it, of at most `limit` bytes.
    pub fn read(&self, limit: usize) -> io::Result<Vec<u8>> {
        if self.size > limit as u64 {
            let message = format!("it is larger than {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut bytes = Vec::new();
        self.open()?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// With which program a file that begins so was compressed, and can be decompressed with `-d`.
pub(crate) fn compression(head: &[u8]) -> Option<&'static str> {
    Some(match head {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        // A tar begins with a name, which may well be BZh9; not what follows: the digits of pi, or those of its root.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, ..] => "bzip2",
        [0x04, 0x22, 0x4d, 0x18, ..] | [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        _ => return None,
    })
}

/// A layer in a file: plain, gzip or zstd, which its first bytes tell.
#[derive(Clone, Debug)]
pub struct BlobLayer {
    pub(crate) name: String,
    pub(crate) at: Extent,
    /// Of the bytes in the file.
    pub(crate) digest: Option<Digest>,
    /// Of the plain tar.
    pub(crate) diff_id: Option<Digest>,
    /// Whether the file is the cache's: then it is removed when it is found to be damaged.
    pub(crate) cached: bool,
    /// Whether it is a layer of an image, and not the whole of a root.
    pub(crate) whiteouts: bool,
}

impl BlobLayer {
    /// How many bytes it takes in its file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.at.size
    }

    /// The digest of these bytes, where it is known beforehand.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The digest of the plain tar, where it is known beforehand.
    #[must_use]
    pub fn diff_id(&self) -> Option<Digest> {
        self.diff_id
    }
}

impl Layer for BlobLayer {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        let raw = HashingReader::new(self.at.open()?);
        let mut raw = BufReader::with_capacity(BUFFER, raw);
        let decoder = match *raw.fill_buf()? {
            [0x1f, 0x8b, ..] => Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(raw))),
            // A frame, or a frame to be skipped, as zstd:chunked has.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Decoder::Zstd(Box::new(zstd::Decoder::with_buffer(raw)?))
            }
            ref other => {
                if let Some(name) = compression(other) {
                    let message = format!(
                        "it is compressed with {name}; only gzip and zstd are read: decompress it first ({name} -d FILE)"
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
                Decoder::Plain(raw)
            }
        };
        Ok(Box::new(Checked {
            layer: self,
            decoder,
            plain: Some(Hasher::default()),
        }))
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn whiteouts(&self) -> bool {
        self.whiteouts
    }
}

type Raw = BufReader<HashingReader<Take<File>>>;

enum Decoder {
    Plain(Raw),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Raw>>),
    Zstd(Box<zstd::Decoder<'static, Raw>>),
}

impl Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(raw) => raw.read(buffer),
            Self::Gzip(gzip) => gzip.read(buffer),
            Self::Zstd(zstd) => zstd.read(buffer),
        }
    }

    fn raw(&mut self) -> &mut Raw {
        match self {
            Self::Plain(raw) => raw,
            Self::Gzip(gzip) => gzip.get_mut(),
            Self::Zstd(zstd) => zstd.get_mut(),
        }
    }
}

/// The plain tar of a layer; its digests are looked at when it ends.
struct Checked<'a> {
    layer: &'a BlobLayer,
    decoder: Decoder,
    /// `None` once the end was reached and found good.
    plain: Option<Hasher>,
}

impl Checked<'_> {
    /// Reads what the decoder left of the file and looks at its size and digest.
    fn check_blob(&mut self) -> io::Result<()> {
        let layer = self.layer;
        let raw = self.decoder.raw();
        io::copy(raw, &mut io::sink())?;
        let raw = raw.get_mut();
        let (count, got) = (raw.count, std::mem::take(&mut raw.hasher).finish());
        if count != layer.at.size {
            return Err(self.bad(&format!("it has {count} bytes, not {}", layer.at.size)));
        }
        match layer.digest {
            Some(expected) if got != expected => {
                Err(self.bad(&format!("it has the digest {got}, not {expected}")))
            }
            _ => Ok(()),
        }
    }

    /// The file is not what it should be.
    fn bad(&self, why: &str) -> io::Error {
        let layer = &self.layer;
        let removed = layer.cached && std::fs::remove_file(&layer.at.path).is_ok();
        let hint = if removed {
            "; it was damaged in the cache and is removed from there: try again"
        } else {
            ""
        };
        let message = format!("layer {}: {why}{hint}", layer.name);
        io::Error::new(io::ErrorKind::InvalidData, message)
    }
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(plain) = &mut self.plain else {
            return Ok(0);
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        match self.decoder.read(buffer) {
            Ok(0) => {}
            Ok(got) => {
                plain.update(&buffer[..got]);
                return Ok(got);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                // A damaged file shows itself first as one that cannot be decompressed.
                self.check_blob()?;
                let message = format!("layer {}: cannot decompress it: {error}", self.layer.name);
                return Err(io::Error::new(error.kind(), message));
            }
        }
        let got = std::mem::take(plain).finish();
        self.check_blob()?;
        match self.layer.diff_id {
            Some(expected) if got != expected => {
                // The file is what its digest says, so it is the configuration that is wrong.
                let message = format!(
                    "layer {}: its tar has the digest {got}, not {expected} as the image's configuration says",
                    self.layer.name
                );
                Err(io::Error::new(io::ErrorKind::InvalidData, message))
            }
            _ => {
                self.plain = None;
                Ok(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::verify::digest_of;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn layer(dir: &tempfile::TempDir, blob: &[u8], tar: &[u8]) -> BlobLayer {
        let path = dir.path().join("blob");
        let framed = [b"before".as_slice(), blob, b"after"].concat();
        std::fs::write(&path, framed).unwrap();
        BlobLayer {
            name: "one".into(),
            at: Extent {
                path,
                offset: 6,
                size: blob.len() as u64,
            },
            digest: Some(digest_of(blob)),
            diff_id: Some(digest_of(tar)),
            cached: false,
            whiteouts: true,
        }
    }

    fn read(layer: &BlobLayer) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        layer.open()?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn each_compression_gives_the_plain_tar() {
        let tar = b"a tar, say".repeat(50_000);
        let skippable = [
            &[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9],
            zstd::encode_all(&tar[..], 1).unwrap().as_slice(),
        ]
        .concat();
        let two_members = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
        for blob in [
            tar.clone(),
            gzip(&tar),
            two_members,
            zstd::encode_all(&tar[..], 1).unwrap(),
            skippable,
        ] {
            let dir = tempfile::tempdir().unwrap();
            assert!(read(&layer(&dir, &blob, &tar)).unwrap() == tar);
        }
    }

    #[test]
    fn an_empty_layer_is_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&layer(&dir, b"", b"")).unwrap(), b"");
    }

    #[test]
    fn a_wrong_digest_is_an_error_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let blob = gzip(b"content");
        let good = layer(&dir, &blob, b"content");
        let of_another = BlobLayer {
            digest: Some(digest_of(b"")),
            ..good.clone()
        };
        let error = read(&of_another).unwrap_err().to_string();
        assert!(
            error.contains("layer one") && error.contains("digest"),
            "{error}"
        );
        let of_another = BlobLayer {
            diff_id: Some(digest_of(b"")),
            cached: true,
            ..good
        };
        let error = read(&of_another).unwrap_err().to_string();
        assert!(error.ends_with("configuration says"), "{error}");
        assert!(of_another.at.path.exists(), "it is not damaged");
    }

    #[test]
    fn what_is_compressed_with_another_program_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&str, &[u8]); 5] = [
            ("xz", b"\xfd7zXZ\0\0\x04"),
            ("bzip2", b"BZh91AY&SY"),
            ("bzip2", b"BZh9\x17\x72\x45\x38\x50\x90"),
            ("lz4", b"\x04\x22\x4d\x18"),
            ("lz4", b"\x02\x21\x4c\x18"),
        ];
        for (name, blob) in cases {
            let error = read(&layer(&dir, blob, b"")).unwrap_err().to_string();
            let expected = format!(
                "it is compressed with {name}; only gzip and zstd are read: decompress it first ({name} -d FILE)"
            );
            assert_eq!(error, expected);
        }
        assert_eq!(compression(b"BZh9/a-file-in-a-tar"), None);
    }

    #[test]
    fn bytes_after_the_compressed_stream_count_for_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let blob = zstd::encode_all(&b"content"[..], 1).unwrap();
        let mut longer = layer(&dir, &blob, b"content");
        longer.at.size += 3;
        assert!(read(&longer).is_err());
    }

    #[test]
    fn a_damaged_blob_leaves_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let blob = gzip(&b"content".repeat(1000));
        let mut damaged = layer(&dir, &blob, &b"content".repeat(1000));
        damaged.cached = true;
        let mut bytes = std::fs::read(&damaged.at.path).unwrap();
        bytes[20] ^= 0xff;
        std::fs::write(&damaged.at.path, bytes).unwrap();
        let error = read(&damaged).unwrap_err().to_string();
        assert!(error.contains("try again"), "{error}");
        assert!(!damaged.at.path.exists());
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let blob = gzip(&b"content".repeat(1000));
        let cut = &blob[..blob.len() - 9];
        let mut layer = layer(&dir, cut, b"");
        layer.diff_id = None;
        let error = read(&layer).unwrap_err().to_string();
        assert!(error.contains("decompress"), "{error}");
    }
}
