//! The whole of `fledge build`: a recipe in; an initramfs and its manifest out, or nothing.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use volant_layers::{Content, Tree};
use volant_spec::{Digest, Manifest, manifest::Artifact};

use crate::{
    check::{self, CheckError},
    elf::{self, Program},
    gather::{self, GatherError},
    initramfs::{self, ArchiveError},
    recipe::{Recipe, RecipeError},
};

/// No recipe is larger.
const MAX_RECIPE_BYTES: u64 = 1024 * 1024;

/// What to build, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// `fledge.toml`; the sources in it are relative to its folder.
    pub recipe: PathBuf,
    /// The folder of the two results; made when missing.
    pub output: PathBuf,
    /// The agent: an x86-64 program that needs no other file.
    pub kestrel: PathBuf,
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    pub manifest: Manifest,
    pub manifest_path: PathBuf,
    pub initramfs_path: PathBuf,
    /// Of the compressed initramfs.
    pub size: u64,
    /// Of all files in it.
    pub unpacked_size: u64,
    pub digest: Digest,
}

/// Why nothing was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cannot read {}", path.display())]
    ReadRecipe { path: PathBuf, source: io::Error },
    #[error("{} is not valid", path.display())]
    Recipe { path: PathBuf, source: RecipeError },
    #[error(
        "cannot read the guest's agent {}; install the package volant-kernel or give --kestrel PATH",
        path.display()
    )]
    ReadKestrel { path: PathBuf, source: io::Error },
    #[error("{} cannot be the guest's agent: it is no static program for x86-64", .0.display())]
    Kestrel(PathBuf),
    #[error(transparent)]
    Gather(#[from] GatherError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Builds `NAME.cpio.gz` and `NAME.manifest.json`. `progress` is called with the bytes done and their total.
///
/// # Errors
/// Anything that keeps the plugin from being whole; nothing is left in the output folder then.
pub fn build(options: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Built, BuildError> {
    let recipe = read_recipe(&options.recipe)?;
    let mut tree = Tree::new();
    initramfs::add_agent(&mut tree, kestrel(&options.kestrel)?)
        .expect("nothing else is in the tree");
    let folder = options.recipe.parent().unwrap_or(Path::new(""));
    for mapping in &recipe.mappings {
        gather::gather(&mut tree, folder, mapping)?;
    }
    let nothing =
        volant_spec::manifest::Workload::new(vec!["/".to_owned()]).expect("it is a program");
    let workload = recipe.workload.over(&nothing).expect("it was checked");
    if let Some(program) = workload.entrypoint.first() {
        check::entrypoint(&tree, program)?;
    }

    let output = &options.output;
    fs::create_dir_all(output).map_err(|source| BuildError::Write {
        path: output.clone(),
        source,
    })?;
    let file_name = format!("{}.cpio.gz", recipe.plugin.name);
    let initramfs_path = output.join(&file_name);
    let initramfs = Pending::new(&initramfs_path)?;
    let (digest, size) = compress(&tree, initramfs.file.as_file(), &initramfs_path, progress)?;

    let manifest = manifest(
        recipe,
        workload,
        Artifact {
            url: file_name,
            checksum: digest,
            size: Some(size),
        },
    );
    let manifest_path = output.join(format!("{}.manifest.json", manifest.name));
    let mut text = serde_json::to_vec_pretty(&manifest).expect("a manifest has string keys only");
    text.push(b'\n');
    let described = Pending::new(&manifest_path)?;
    described
        .file
        .as_file()
        .write_all(&text)
        .map_err(|source| BuildError::Write {
            path: manifest_path.clone(),
            source,
        })?;

    initramfs.keep()?;
    if let Err(error) = described.keep() {
        // The error to tell is that of the manifest; an initramfs without one is of no use.
        let _ = fs::remove_file(&initramfs_path);
        return Err(error);
    }
    Ok(Built {
        manifest,
        manifest_path,
        initramfs_path,
        size,
        unpacked_size: tree.size(),
        digest,
    })
}

fn read_recipe(path: &Path) -> Result<Recipe, BuildError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_RECIPE_BYTES + 1).read_to_string(&mut text))
        .and_then(|_| match text.len() as u64 {
            0..=MAX_RECIPE_BYTES => Ok(()),
            _ => Err(io::Error::other(format!(
                "it has more than {MAX_RECIPE_BYTES} bytes"
            ))),
        })
        .map_err(|source| BuildError::ReadRecipe {
            path: path.to_owned(),
            source,
        })?;
    Recipe::parse(&text).map_err(|source| BuildError::Recipe {
        path: path.to_owned(),
        source,
    })
}

fn kestrel(path: &Path) -> Result<Content, BuildError> {
    let failed = |source| BuildError::ReadKestrel {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    match elf::program(file).map_err(failed)? {
        Program::Static => Ok(Content::File {
            path: path.to_owned(),
            size,
        }),
        _ => Err(BuildError::Kestrel(path.to_owned())),
    }
}

/// Writes the compressed archive; gives its digest and size.
fn compress(
    tree: &Tree,
    file: &File,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Digest, u64), BuildError> {
    let failed = |source| BuildError::Write {
        path: path.to_owned(),
        source,
    };
    let measured = Measured {
        out: BufWriter::new(file),
        hash: Sha256::new(),
        size: 0,
    };
    // Unpacked in a guest, gzip is as quick as zstd; level 9 makes it 1 % smaller in three times the time.
    let packed = GzBuilder::new()
        .mtime(0)
        .write(measured, Compression::new(6));
    let (mut done, total) = (0, tree.size());
    let written = initramfs::write(tree, &[], packed, &mut |bytes| {
        done += bytes;
        progress(done, total);
    })?;
    let mut measured = written.out.finish().map_err(failed)?;
    measured.flush().map_err(failed)?;
    Ok((
        Digest::from_bytes(measured.hash.finalize().into()),
        measured.size,
    ))
}

fn manifest(
    recipe: Recipe,
    workload: volant_spec::manifest::Workload,
    initramfs: Artifact,
) -> Manifest {
    let mut manifest = Manifest::new(recipe.plugin.name, recipe.plugin.version, workload);
    manifest.initramfs = Some(initramfs);
    manifest.resources = recipe.resources;
    manifest
}

/// A file beside its place, which it takes once it is whole; gone when it is not.
struct Pending {
    file: NamedTempFile,
    path: PathBuf,
}

impl Pending {
    fn new(path: &Path) -> Result<Self, BuildError> {
        let failed = |source| BuildError::Write {
            path: path.to_owned(),
            source,
        };
        let folder = path
            .parent()
            .filter(|folder| *folder != Path::new(""))
            .unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".fledge-")
            .tempfile_in(folder)
            .map_err(failed)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))
            .map_err(failed)?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    fn keep(self) -> Result<(), BuildError> {
        match self.file.persist(&self.path) {
            Ok(_) => Ok(()),
            Err(error) => Err(BuildError::Write {
                path: self.path,
                source: error.error,
            }),
        }
    }
}

/// Hashes and counts what it passes on.
struct Measured<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
