//! What a program needs to be started: read from its first bytes, which are anybody's.

use std::{
    ffi::OsString,
    io::{self, Read, Seek, SeekFrom},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

const X86_64: u16 = 62;
const INTERPRETER: u32 = 3;
const MAX_SEGMENTS: u16 = 256;
const MAX_PATH: u64 = 4096;

/// How the kernel starts a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// An x86-64 program that needs nothing else.
    Static,
    /// An x86-64 program that another one loads: the dynamic linker.
    Dynamic(PathBuf),
    /// A text that another program reads, as its first line says.
    Script(PathBuf),
    /// A program for another processor.
    Foreign,
    /// Nothing that the kernel knows.
    Unknown,
}

/// Tells how a program is started.
///
/// # Errors
/// It cannot be read. A damaged one is [`Program::Unknown`].
pub fn program(mut file: impl Read + Seek) -> io::Result<Program> {
    let mut start = Vec::new();
    file.by_ref().take(256).read_to_end(&mut start)?;
    if let Some(script) = start.strip_prefix(b"#!") {
        return Ok(interpreter_of_script(script));
    }
    if start.len() < 64 || !start.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Program::Unknown);
    }
    if u16_at(&start, 18) != X86_64 {
        return Ok(Program::Foreign);
    }
    let (table, entry_size, count) = (u64_at(&start, 32), u16_at(&start, 54), u16_at(&start, 56));
    if entry_size != 56 || count > MAX_SEGMENTS {
        return Ok(Program::Unknown);
    }
    file.seek(SeekFrom::Start(table))?;
    let mut segments = Vec::new();
    file.by_ref()
        .take(u64::from(count) * 56)
        .read_to_end(&mut segments)?;
    let Some(segment) = segments
        .chunks_exact(56)
        .find(|segment| u32_at(segment, 0) == INTERPRETER)
    else {
        return Ok(Program::Static);
    };
    let (offset, size) = (u64_at(segment, 8), u64_at(segment, 32));
    if !(2..=MAX_PATH).contains(&size) {
        return Ok(Program::Unknown);
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut path = Vec::new();
    file.take(size).read_to_end(&mut path)?;
    path.truncate(
        path.iter()
            .position(|byte| *byte == 0)
            .unwrap_or(path.len()),
    );
    Ok(Program::Dynamic(OsString::from_vec(path).into()))
}

fn interpreter_of_script(line: &[u8]) -> Program {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let word: Vec<u8> = line
        .iter()
        .skip_while(|byte| is_space(byte))
        .take_while(|byte| !is_space(byte) && !matches!(byte, b'\n' | b'\r'))
        .copied()
        .collect();
    Program::Script(OsString::from_vec(word).into())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A program of headers only; `interpreter` makes it a dynamic one.
    fn elf(machine: u16, interpreter: Option<&str>) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        if let Some(path) = interpreter {
            bytes[64..68].copy_from_slice(&INTERPRETER.to_le_bytes());
            bytes[72..80].copy_from_slice(&120_u64.to_le_bytes());
            bytes[96..104].copy_from_slice(&(path.len() as u64 + 1).to_le_bytes());
            bytes.extend_from_slice(path.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    #[test]
    fn a_program_tells_what_starts_it() {
        let cases = [
            (elf(X86_64, None), Program::Static),
            (
                elf(X86_64, Some("/lib64/ld.so")),
                Program::Dynamic("/lib64/ld.so".into()),
            ),
            (elf(183, None), Program::Foreign),
            (
                b"#! /bin/sh -e\n".to_vec(),
                Program::Script("/bin/sh".into()),
            ),
            (b"hello".to_vec(), Program::Unknown),
            (Vec::new(), Program::Unknown),
        ];
        for (bytes, expected) in cases {
            assert_eq!(program(Cursor::new(&bytes)).unwrap(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_damaged_program_is_no_trouble() {
        let whole = elf(X86_64, Some("/lib64/ld.so"));
        for end in 0..whole.len() {
            program(Cursor::new(&whole[..end])).unwrap();
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            let _: io::Result<Program> = program(Cursor::new(&damaged));
        }
    }

    #[test]
    fn this_very_test_is_a_dynamic_program() {
        let this = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        assert!(matches!(program(this).unwrap(), Program::Dynamic(_)));
    }
}
