//! What archives say of their entries, in each of the formats that there are.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Archive, Seen, merged};

fn layer() -> Archive {
    Archive::new()
}

#[test]
fn metadata_is_that_of_the_last_entry() {
    let mut header = Archive::header(b'5', b"./", 0);
    header.set_mode(0o40_1777);
    header.set_uid(1000);
    let mut setuid = Archive::header(b'0', b"su", 2);
    setuid.set_mode(0o4755);
    setuid.set_gid(50);
    setuid.set_mtime(1_700_000_000);
    let mut device = Archive::header(b'3', b"null", 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let layers = [
        layer()
            .dir("./")
            .dir("a")
            .raw(setuid, b"su")
            .raw(device, b""),
        layer()
            .raw(header, b"")
            .pax(&[("SCHILY.xattr.user.a", b"\n\0=")])
            .dir("a"),
    ];
    let seen = Seen::of(&layers);
    assert_eq!(seen.paths[""], "d 1777 1000:0");
    let expected = [
        r"a d user.a=\n\x00=",
        "null c1:3",
        "su f 4755 0:50 @1700000000'su'",
    ];
    assert_eq!(seen.listing(), expected);
}

#[test]
fn extended_headers_say_what_plain_ones_cannot() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let layers = [layer()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"4294967294"),
            ("gid", b"3000000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\n"),
            ("LIBARCHIVE.xattr.user.b%20c", b"YWI"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("size", b"3"),
        ])
        .raw(Archive::header(b'0', b"short", 0), b"abc")
        .pax(&[("linkpath", long.as_bytes())])
        .link("link", "short")
        .entry(b'L', "././@LongLink", &format!("{}\0", "g".repeat(150)))
        .entry(b'K', "././@LongLink", &format!("{}\0", "t".repeat(150)))
        .symlink("short", "short")
        .extended(
            b'g',
            &[("mtime", b"7"), ("path", b"nonsense"), ("comment", b"abc")],
        )
        .file("after", "")
        .entry(b'7', "contiguous", "c")
        .raw(Archive::header(0, b"olddir/", 0), b"")];
    let seen = Seen::of(&layers);
    let expected = [
        "after f @7''".to_owned(),
        "contiguous f @7'c'".to_owned(),
        format!("{} d", "d".repeat(120)),
        format!(
            "{long} f 4294967294:3000000 @-2 security.capability=\\x01\\x00\\x00\\x02\\x00\\n user.b c=ab'abc'"
        ),
        format!("{} l->{}", "g".repeat(150), "t".repeat(150)),
        format!("link = {long}"),
        "olddir d 644 @7".to_owned(),
    ];
    assert_eq!(seen.listing(), expected);
}

/// The blocks that GNU's own sparse format begins with: four pieces in the header, more in the next block.
fn old_sparse() -> Archive {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_path("old").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(6);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(20);
    gnu.set_is_extended(true);
    for (piece, at) in gnu.sparse.iter_mut().zip([1, 3, 5, 7]) {
        piece.set_offset(at);
        piece.set_length(1);
    }
    let mut more = tar::GnuExtSparseHeader::new();
    more.sparse_mut()[0].set_offset(9);
    more.sparse_mut()[0].set_length(2);
    layer()
        .raw(header, b"")
        .bytes(more.as_bytes())
        .bytes(b"abcdef")
}

#[test]
fn sparse_files_of_all_formats_come_out_whole() {
    let v1_map = b"2\n2\n3\n8\n1\n";
    let mut v1 = v1_map.to_vec();
    v1.resize(512, 0);
    v1.extend_from_slice(b"abcd");
    let layers = [
        old_sparse().file("next", "next"),
        layer()
            .pax(&[
                ("GNU.sparse.size", b"10"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"2"),
                ("GNU.sparse.numbytes", b"3"),
                ("GNU.sparse.offset", b"8"),
                ("GNU.sparse.numbytes", b"1"),
            ])
            .file("v00", "abcd")
            .pax(&[
                ("GNU.sparse.name", b"v01"),
                ("GNU.sparse.size", b"10"),
                ("GNU.sparse.map", b"2,3,8,1"),
            ])
            .file("GNUSparseFile.0/v01", "abcd")
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"v10"),
                ("GNU.sparse.realsize", b"10"),
            ])
            .raw(Archive::header(b'0', b"GNUSparseFile.0/v10", 516), &v1)
            .file("next2", "next"),
    ];
    let seen = Seen::of(&layers);
    assert_eq!(
        seen.contents[&b"old"[..]],
        b"\0a\0b\0c\0d\0ef\0\0\0\0\0\0\0\0\0"
    );
    for name in ["v00", "v01", "v10"] {
        assert_eq!(
            seen.contents[name.as_bytes()],
            b"\0\0abc\0\0\0d\0",
            "{name}"
        );
    }
    for name in ["next", "next2"] {
        assert_eq!(seen.contents[name.as_bytes()], b"next");
    }
}

/// As `umoci insert` of Debian 12 writes it: not even the last block is filled up.
#[test]
fn an_archive_may_end_with_the_last_byte_of_a_file() {
    let mut archive = layer().file("a", "one").file("b", "two");
    archive.0.truncate(archive.0.len() - 509);
    let tree = merged(&[archive]).unwrap();
    assert_eq!(tree.get(b"b").unwrap().size(), 3);
}
