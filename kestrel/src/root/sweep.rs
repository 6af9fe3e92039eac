//! Gives back the memory of an initramfs that was only the way to another root.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

/// Removes all below `root` that is on the file system of `root` itself: what is mounted there stays, with the folders
/// that lead to it. What cannot be removed stays too.
///
/// # Errors
/// A folder cannot be listed; what was found before is gone.
pub fn sweep(root: &Path) -> io::Result<()> {
    let device = fs::symlink_metadata(root)?.dev();
    // A list and no recursion: folders may be nested deeper than a stack is.
    let mut folders = vec![root.to_owned()];
    let mut listed = 0;
    while let Some(folder) = folders.get(listed).cloned() {
        listed += 1;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.dev() != device {
                continue;
            }
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    // The deepest last, so backwards; without the root.
    for folder in folders.iter().skip(1).rev() {
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn everything_goes_but_the_folder_itself_and_what_links_point_at() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b/c")).unwrap();
        fs::write(root.path().join("a/b/file"), "x").unwrap();
        fs::write(root.path().join("init"), "x").unwrap();
        symlink(outside.path(), root.path().join("a/link")).unwrap();
        sweep(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn another_file_system_is_not_entered() {
        // proc is one on every Linux; its folders cannot be removed anyhow, and would fail to be listed.
        let device = |path: &str| fs::symlink_metadata(path).unwrap().dev();
        assert_ne!(device("/"), device("/proc"));
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("folder")).unwrap();
        sweep(root.path()).unwrap();
        assert!(Path::new("/proc/self").exists());
        assert!(!root.path().join("folder").exists());
    }
}
