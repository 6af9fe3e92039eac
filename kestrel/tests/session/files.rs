//! Archives out of and into the guest.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use nix::unistd::geteuid;
use volant_layers::{TarEntry, TarReader, What};
use volant_proto::agent::v1::{SessionEnd, UnpackSession, session_refused::Kind as Why};

use crate::client::{command, pack, run, sh, unpack};

/// Entries with their content.
fn entries(archive: &[u8]) -> Vec<(TarEntry, Vec<u8>)> {
    let mut reader = TarReader::new(archive, u64::MAX);
    let mut found = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        let mut content = Vec::new();
        if matches!(entry.what, What::File { size, .. } if size < 1 << 20) {
            reader.read_to_end(&mut content).unwrap();
        }
        found.push((entry, content));
    }
    found
}

async fn packed(path: impl AsRef<Path>) -> Vec<u8> {
    let (client, _) = pack(path.as_ref().to_str().unwrap(), false).await.unwrap();
    let done = client.done().await;
    assert_eq!(done.end.error, "");
    done.output
}

fn to(folder: &Path) -> UnpackSession {
    UnpackSession {
        path: folder.to_str().unwrap().to_owned(),
        keep_owner: geteuid().is_root(),
        ..UnpackSession::default()
    }
}

async fn unpacked(folder: &Path, archive: &[u8]) -> SessionEnd {
    unpack(to(folder), archive).await.unwrap()
}

/// Type, name, target or content.
type Entries<'a> = &'a [(u8, &'a [u8], &'a [u8])];

/// An archive by hand, as nobody who means well makes it.
fn archive(entries: Entries<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, rest) in entries {
        let is_file = *kind == b'0';
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(b"0004755");
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        let size = if is_file { rest.len() } else { 0 };
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(b"00000000001");
        block[148..156].fill(b' ');
        block[156] = *kind;
        if !is_file {
            block[157..157 + rest.len()].copy_from_slice(rest);
        }
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bytes.extend(block);
        if is_file {
            bytes.extend(*rest);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
    }
    bytes.extend([0; 1024]);
    bytes
}

#[tokio::test]
async fn a_tree_comes_out_and_goes_in_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    let into = root.path().join("into");
    fs::create_dir(&into).unwrap();
    let long = "n".repeat(180);
    let script = format!(
        "set -e; mkdir -p from/folder/{long} from/empty; cd from; \
         printf content > folder/{long}/file; chmod 640 folder/{long}/file; chmod 1777 empty; \
         touch -d '2001-02-03 04:05:06.123456789' folder/{long}/file; ln folder/{long}/file second; \
         ln -s ../nowhere dangling; ln -s /{long}/{long} far; mkfifo pipe; \
         truncate -s 3G holes; printf middle | dd of=holes bs=1 seek=1500000000 conv=notrunc status=none; \
         head -c 300000 /dev/urandom > large; printf x > 'strange \n name'; \
         touch -d '1969-12-31 23:59:58.5' old; touch -d '2011-01-01 00:00:00.5' folder; \
         setfattr -n user.note -v 'a note' large || true"
    );
    let wanted = volant_proto::agent::v1::ExecSession {
        workdir: root.path().to_str().unwrap().to_owned(),
        ..sh(&script)
    };
    let done = run(wanted).await;
    assert_eq!(
        done.exit(),
        (0, 0),
        "{}",
        String::from_utf8_lossy(&done.error)
    );

    let archive = packed(&from).await;
    assert!(
        archive.len() < 2 << 20,
        "holes are not packed: {}",
        archive.len()
    );
    let end = unpacked(&into, &archive).await;
    assert_eq!(end.error, "");
    assert_eq!(end.entries, entries(&archive).len() as u64);

    let same = format!(
        "set -e; list() {{ (cd $1; find . -printf '%p %y %m %U %G %T@ %s %l %n\\n' | LC_ALL=C sort); }}; \
         list {0}/from > {0}/a; list {0}/into/from > {0}/b; diff {0}/a {0}/b; \
         for file in large second holes; do cmp {0}/from/$file {0}/into/from/$file; done",
        root.path().display()
    );
    let done = run(sh(&same)).await;
    assert_eq!(done.exit(), (0, 0), "{}", done.text());
    let holes = fs::metadata(into.join("from/holes")).unwrap();
    assert!(holes.blocks() * 512 < 1 << 20, "{} blocks", holes.blocks());
    let inode = |name: &str| fs::metadata(into.join("from").join(name)).unwrap().ino();
    assert_eq!(inode("second"), inode(&format!("folder/{long}/file")));
}

#[tokio::test]
async fn gnu_tar_reads_what_is_packed() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("from/below")).unwrap();
    fs::write(root.path().join("from/below/file"), "content").unwrap();
    let sparse = fs::File::create(root.path().join("from/holes")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", (50 << 20) - 3).unwrap();
    let archive = packed(root.path().join("from")).await;
    fs::write(root.path().join("archive"), &archive).unwrap();
    fs::create_dir(root.path().join("into")).unwrap();
    let script = format!(
        "cd {0} && tar -C into -xf archive && diff -r from into/from && stat -c %b into/from/holes",
        root.path().display()
    );
    let done = run(sh(&script)).await;
    assert_eq!(
        done.exit(),
        (0, 0),
        "{}",
        String::from_utf8_lossy(&done.error)
    );
    assert!(done.text().trim().parse::<u64>().unwrap() < 1000);

    // And what it writes is read, in each of its formats.
    for format in ["gnu", "pax"] {
        let script = format!(
            "cd {0} && tar --format={format} --sparse -cf again from",
            root.path().display()
        );
        assert_eq!(run(sh(&script)).await.exit(), (0, 0));
        let again = fs::read(root.path().join("again")).unwrap();
        let into = root.path().join(format);
        fs::create_dir(&into).unwrap();
        assert_eq!(unpacked(&into, &again).await.error, "");
        let same = format!("diff -r {0}/from {0}/{format}/from", root.path().display());
        assert_eq!(run(sh(&same)).await.exit(), (0, 0));
    }
}

#[tokio::test]
async fn the_names_are_those_of_the_path_or_of_what_is_in_it() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("folder")).unwrap();
    fs::write(root.path().join("folder/file"), "").unwrap();
    symlink("folder", root.path().join("link")).unwrap();
    let names = |archive: Vec<u8>| -> Vec<String> {
        entries(&archive)
            .into_iter()
            .map(|(entry, _)| String::from_utf8(entry.name).unwrap())
            .collect()
    };
    let path = root.path().display();
    assert_eq!(
        names(packed(format!("{path}/folder")).await),
        ["folder/", "folder/file"]
    );
    assert_eq!(
        names(packed(format!("{path}/folder/.")).await),
        ["./", "file"]
    );
    assert_eq!(names(packed(format!("{path}/folder/file")).await), ["file"]);
    assert_eq!(names(packed(format!("{path}/link")).await), ["link"]);
    let (client, opened) = pack(&format!("{path}/link"), true).await.unwrap();
    assert!(opened.path.unwrap().is_directory);
    assert_eq!(names(client.done().await.output), ["link/", "link/file"]);
    for (missing, why) in [("/no/such/path", Why::NotFound), ("etc", Why::Invalid)] {
        assert_eq!(pack(missing, false).await.err().unwrap().kind(), why);
    }
}

#[tokio::test]
async fn file_systems_of_the_kernel_are_left_empty() {
    // Their files have no size, or no end.
    let (client, _) = pack("/proc/self/fdinfo", false).await.unwrap();
    drop(client);
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("proc")).unwrap();
    let archive = packed(root.path()).await;
    assert_eq!(entries(&archive).len(), 2);
}

#[tokio::test]
async fn nothing_is_written_outside_whatever_the_archive_says() {
    let root = tempfile::tempdir().unwrap();
    let into = root.path().join("into");
    let outside = root.path().join("outside");
    let outside_name = outside.to_str().unwrap().as_bytes().to_vec();
    let absolute = [&outside_name[..], b"/absolute"].concat();
    let refused: [(Entries<'_>, &str); 6] = [
        (&[(b'0', b"../outside/file", b"x")], "\"..\""),
        (&[(b'0', b"a/../../outside/file", b"x")], "\"..\""),
        (
            &[(b'2', b"up", b"../outside"), (b'0', b"up/file", b"x")],
            "",
        ),
        (
            &[(b'2', b"abs", &outside_name), (b'0', b"abs/file", b"x")],
            "",
        ),
        (&[(b'1', b"hard", b"../outside/secret")], "\"..\""),
        (
            &[(b'2', b"up", b"../outside"), (b'1', b"hard", b"up/secret")],
            "No such file",
        ),
    ];
    for (entries, words) in refused {
        fs::create_dir(&into).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        let end = unpacked(&into, &archive(entries)).await;
        assert!(end.error.contains(words), "{entries:?}: {}", end.error);
        let there: Vec<_> = fs::read_dir(&outside).unwrap().flatten().collect();
        assert_eq!(there.len(), 1, "{entries:?}: {there:?}");
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        fs::remove_dir_all(&into).unwrap();
        fs::remove_dir_all(&outside).unwrap();
    }
    // An absolute name is one below the folder.
    fs::create_dir(&into).unwrap();
    let end = unpacked(&into, &archive(&[(b'0', &absolute, b"x")])).await;
    assert_eq!((&*end.error, end.entries), ("", 1));
    assert!(!outside.exists());
    let below = into
        .join(outside.strip_prefix("/").unwrap())
        .join("absolute");
    assert_eq!(fs::read(below).unwrap(), b"x");
}

#[tokio::test]
async fn a_link_in_the_last_place_is_replaced_and_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let into = root.path().join("into");
    fs::create_dir(&into).unwrap();
    let kept = root.path().join("kept");
    fs::write(&kept, "kept").unwrap();
    symlink(&kept, into.join("link")).unwrap();
    let end = unpacked(&into, &archive(&[(b'0', b"link", b"new")])).await;
    assert_eq!((&*end.error, end.entries), ("", 1));
    assert_eq!(fs::read(&kept).unwrap(), b"kept");
    assert_eq!(fs::read(into.join("link")).unwrap(), b"new");
    assert!(fs::symlink_metadata(into.join("link")).unwrap().is_file());
}

#[tokio::test]
async fn what_is_there_makes_way_or_not_as_is_asked() {
    let root = tempfile::tempdir().unwrap();
    let into = root.path();
    let file: Entries<'_> = &[(b'0', b"place", b"file")];
    let folder: Entries<'_> = &[(b'5', b"place", b"")];
    let careful = UnpackSession {
        no_overwrite_dir_non_dir: true,
        ..to(into)
    };
    fs::create_dir_all(into.join("place/below")).unwrap();
    let end = unpack(careful.clone(), &archive(file)).await.unwrap();
    assert!(end.error.contains("a folder is there"), "{}", end.error);
    assert!(into.join("place/below").is_dir());
    assert_eq!(unpacked(into, &archive(folder)).await.error, "");
    assert!(into.join("place/below").is_dir());
    assert_eq!(unpacked(into, &archive(file)).await.error, "");
    assert_eq!(fs::read(into.join("place")).unwrap(), b"file");
    let end = unpack(careful, &archive(folder)).await.unwrap();
    assert!(end.error.contains("no folder"), "{}", end.error);
    assert_eq!(unpacked(into, &archive(folder)).await.error, "");
    assert!(into.join("place").is_dir());
}

#[tokio::test]
async fn privileges_go_with_the_owner_or_not_at_all() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let archive = archive(&[(b'0', b"file", b"x")]);
    let mode = || {
        fs::metadata(root.path().join("file"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(unpacked(root.path(), &archive).await.error, "");
    assert_eq!(mode(), 0o4755);
    let wanted = UnpackSession {
        keep_owner: false,
        ..to(root.path())
    };
    assert_eq!(unpack(wanted, &archive).await.unwrap().error, "");
    assert_eq!(mode(), 0o755);
}

#[tokio::test]
async fn devices_and_pipes_are_made() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can make devices");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let archive = archive(&[(b'6', b"pipe", b""), (b'3', b"null", b"")]);
    let end = unpacked(root.path(), &archive).await;
    assert_eq!((&*end.error, end.entries), ("", 2));
    let kind = |name: &str| fs::metadata(root.path().join(name)).unwrap().file_type();
    assert!(kind("pipe").is_fifo() && kind("null").is_char_device());
}

#[tokio::test]
async fn an_archive_that_is_none_or_not_whole_is_told_and_what_came_first_is_there() {
    let root = tempfile::tempdir().unwrap();
    let whole = archive(&[(b'0', b"one", b"1"), (b'0', b"two", &[b'2'; 5000])]);
    let end = unpacked(root.path(), &whole[..3000]).await;
    assert_eq!(end.entries, 1);
    assert!(end.error.contains("two"), "{}", end.error);
    assert_eq!(fs::read(root.path().join("one")).unwrap(), b"1");
    let end = unpacked(root.path(), &vec![b'x'; 3_000_000]).await;
    assert!(
        end.error.contains("cannot read the archive"),
        "{}",
        end.error
    );
    let mut strange = archive(&[(b'V', b"volume", b"")]);
    let end = unpacked(root.path(), &strange).await;
    assert!(end.error.contains("volume"), "{}", end.error);
    strange.truncate(0);
    assert_eq!(unpacked(root.path(), &strange).await, SessionEnd::default());
    for (path, why) in [
        ("/no/such", Why::NotFound),
        ("/etc/passwd", Why::Unusable),
        ("x", Why::Invalid),
    ] {
        let wanted = UnpackSession {
            path: path.to_owned(),
            ..UnpackSession::default()
        };
        assert_eq!(unpack(wanted, &whole).await.unwrap_err().kind(), why);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_with_the_file() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can mount a small disk");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=64k none {}", root.path().display());
    if run(sh(&mount)).await.exit() != (0, 0) {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let end = unpacked(root.path(), &archive(&[(b'0', b"large", &[b'x'; 200_000])])).await;
    run(command(&["umount", root.path().to_str().unwrap()]))
        .await
        .exit();
    assert!(end.error.contains("large: No space left"), "{}", end.error);
    assert_eq!(end.entries, 0);
}

#[tokio::test]
async fn a_file_that_becomes_shorter_is_told_and_the_archive_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, vec![b'x'; 20_000_000]).unwrap();
    let (mut client, opened) = pack(path.to_str().unwrap(), false).await.unwrap();
    assert_eq!(opened.path.unwrap().size, 20_000_000);
    // It is held up with most of the file to read.
    let first = client.next().await.unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10_000_000)
        .unwrap();
    let mut done = client.done().await;
    assert!(done.end.error.contains("shorter"), "{}", done.end.error);
    done.output.splice(0..0, first.payload);
    let found = entries(&done.output);
    assert!(matches!(
        found[0].0.what,
        What::File {
            size: 20_000_000,
            ..
        }
    ));
}
