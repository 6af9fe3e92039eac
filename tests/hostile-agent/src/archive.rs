//! Archives that lead out of where they are unpacked, that are none, or that never end.

use std::io;

/// What an entry is, as a tar's header tells it.
const FILE: u8 = b'0';
const LINK: u8 = b'1';
const SYMLINK: u8 = b'2';
const DEVICE: u8 = b'3';
const FOLDER: u8 = b'5';
const LONG_NAME: u8 = b'L';
const BLOCK: usize = 512;

/// Gives the archive of that name in pieces, until it ends or nobody takes them.
pub fn send(name: &str, mut give: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut add = |kind, name: &str, target: &str| {
        entry(&mut bytes, kind, 0o6755, name, target, b"owned\n");
    };
    match name {
        "parent" => add(FILE, "x/../../escaped", ""),
        "absolute" => add(FILE, "/root/escaped", ""),
        "other" => {
            add(FOLDER, "x/", "");
            add(FILE, "other/escaped", "");
        }
        // A way out that is made first, and then gone through.
        "through-link" => {
            add(FOLDER, "x/", "");
            add(SYMLINK, "x/out", "/root");
            add(FILE, "x/out/escaped", "");
        }
        "through-top" => {
            add(SYMLINK, "x", "/root");
            add(FILE, "x/escaped", "");
        }
        "over-link" => {
            add(FOLDER, "x/", "");
            add(SYMLINK, "x/out", "/root/escaped");
            add(FILE, "x/out", "");
        }
        "link-parent" => {
            add(FOLDER, "x/", "");
            add(LINK, "x/stolen", "x/../../secret");
        }
        "link-absolute" => {
            add(FOLDER, "x/", "");
            add(LINK, "x/stolen", "/root/secret");
        }
        "link-through-link" => {
            add(FOLDER, "x/", "");
            add(SYMLINK, "x/out", "/root");
            add(LINK, "x/stolen", "x/out/secret");
        }
        "rights" => {
            add(FOLDER, "x/", "");
            add(FILE, "x/setuid", "");
            add(DEVICE, "x/device\x1b]0;owned\x07", "");
        }
        "deep" => {
            let deep = format!("x/{}", "d/".repeat(30_000));
            entry(
                &mut bytes,
                LONG_NAME,
                0,
                "././@LongLink",
                "",
                deep.as_bytes(),
            );
            entry(&mut bytes, FOLDER, 0o755, "x/", "", b"");
        }
        "cut" => bytes.extend([b'x'; BLOCK / 2]),
        "none" => bytes.extend([0xff; 4 * BLOCK]),
        // Folders without end.
        "endless" => {
            for number in 0_u64.. {
                let mut folder = Vec::new();
                entry(&mut folder, FOLDER, 0o755, &format!("x/{number}/"), "", b"");
                give(&folder)?;
            }
        }
        _ => {
            add(FOLDER, "x/", "");
            add(FILE, "x/good", "");
        }
    }
    bytes.extend([0; 2 * BLOCK]);
    give(&bytes)
}

fn entry(bytes: &mut Vec<u8>, kind: u8, mode: u32, name: &str, target: &str, content: &[u8]) {
    let content = if matches!(kind, FILE | LONG_NAME) {
        content
    } else {
        b""
    };
    let mut header = [0; BLOCK];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", content.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    bytes.extend(header);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
}
