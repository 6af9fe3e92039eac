//! The whole of `fledge build`: a recipe in; an artifact and its manifest out, or nothing.

mod describe;
mod source;
mod staging;

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use volant_layers::{Content, Layer, Limits, MergeError, Tree, TreeError};
use volant_oci::ProgressFn;
use volant_spec::{
    Digest, Manifest,
    manifest::{self, Artifact, Rootfs, RootfsFormat},
};

use crate::{
    base::{self, BaseError},
    cancel::{Cancel, Cancelled},
    check::{self, CheckError},
    elf::{self, Program},
    filesystem::{self, FilesystemError},
    gather::{self, GatherError},
    image::{self, RunError},
    initramfs::{self, ArchiveError},
    recipe::{Filesystem, FilesystemType, Kernel, Recipe, RecipeError, Root},
};

pub use describe::DescribeError;
use source::Obtained;
pub use source::{ObtainError, Registries};
use staging::Staging;
pub use staging::StagingError;

/// No recipe is larger.
const MAX_RECIPE_BYTES: u64 = 1024 * 1024;
/// How often a stream that is read for its names alone looks whether it is to end, in bytes.
const STEP: usize = 1024 * 1024;

/// What to build, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// `fledge.toml`; the sources in it are relative to its folder.
    pub recipe: PathBuf,
    /// The folder of the results; made when missing.
    pub output: PathBuf,
    /// The agent of an initramfs: an x86-64 program that needs no other file.
    pub kestrel: PathBuf,
    pub registries: Registries,
    pub cancel: Cancel,
}

/// Is told how far a build is.
pub trait Watch {
    /// For blobs that are fetched.
    fn fetching(&self) -> ProgressFn;
    /// Layers are read for what is in them: so many bytes of so many.
    fn reading(&mut self, done: u64, total: u64);
    /// The artifact is written: so many bytes of files of so many.
    fn packing(&mut self, done: u64, total: u64);
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    pub manifest: Manifest,
    pub manifest_path: PathBuf,
    /// The initramfs, or the image of the root file system.
    pub artifact_path: PathBuf,
    /// Of the artifact, in bytes.
    pub size: u64,
    /// Of all files in it, in bytes.
    pub unpacked_size: u64,
    pub digest: Digest,
    /// What is not as its author may think, for people.
    pub warnings: Vec<String>,
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
    #[error("cannot put the guest's agent over the image")]
    Agent(#[source] TreeError),
    #[error(transparent)]
    Obtain(#[from] ObtainError),
    #[error("cannot merge the layers of {image}")]
    Merge { image: String, source: MergeError },
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Gather(#[from] GatherError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("cannot make the file system")]
    Filesystem(#[from] FilesystemError),
    #[error(transparent)]
    Describe(#[from] DescribeError),
    #[error(transparent)]
    Staging(#[from] StagingError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl BuildError {
    /// Whether it was told to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_))
    }
}

/// Builds `NAME.cpio.gz`, or `NAME.squashfs` and the like, and `NAME.manifest.json`.
///
/// # Errors
/// Anything that keeps the plugin from being whole, or that it was told to end; nothing is left in the output folder then.
pub fn build(options: &Options, watch: &mut dyn Watch) -> Result<Built, BuildError> {
    let built = whole(options, watch);
    // Whatever a reader or a child made of it, the user knows why.
    if built.is_err() {
        options.cancel.check()?;
    }
    built
}

fn whole(options: &Options, watch: &mut dyn Watch) -> Result<Built, BuildError> {
    let recipe = read_recipe(&options.recipe)?;
    let folder = options.recipe.parent().unwrap_or(Path::new(""));
    let obtained = match recipe.root.source() {
        Some(source) => Some(source::obtain(
            source,
            folder,
            &options.output,
            &options.registries,
            watch.fetching(),
            &options.cancel,
        )?),
        None => None,
    };
    let layers: Vec<Watched<'_>> = obtained
        .iter()
        .flat_map(|obtained| &obtained.image.layers)
        .map(|layer| Watched {
            layer,
            cancel: &options.cancel,
        })
        .collect();
    let layers: Vec<&dyn Layer> = layers.iter().map(|layer| layer as &dyn Layer).collect();
    let mut tree = merge(&layers, obtained.as_ref(), watch)?;
    if matches!(recipe.root, Root::Initramfs(_)) {
        initramfs::add_agent(&mut tree, kestrel(&options.kestrel)?).map_err(BuildError::Agent)?;
    }
    for mapping in &recipe.mappings {
        gather::gather(&mut tree, folder, mapping)?;
    }
    base::add(&mut tree, &recipe.base, folder)?;

    let config = obtained
        .as_ref()
        .map(|obtained| obtained.image.config.clone())
        .unwrap_or_default();
    let image::Run {
        workload,
        network,
        mut warnings,
    } = image::run(&config, &recipe.workload, recipe.plugin.init.is_some())?;
    if let Some(program) = workload.entrypoint.first() {
        check::entrypoint(&tree, program)?;
    }
    let mut manifest = describe::manifest(&recipe, workload, network, folder)?;
    if let Some(obtained) = &obtained {
        manifest.image.clone_from(&obtained.reference);
        manifest.image_digest = obtained
            .reference
            .as_ref()
            .and(obtained.image.digest)
            .map(|digest| digest.to_string());
    }

    let mut staging = Staging::new(&options.output)?;
    let (name, digest, size) = match &recipe.root {
        Root::Initramfs(_) => {
            let name = format!("{}.cpio.gz", manifest.name);
            let (digest, size) = compress(
                &tree,
                &layers,
                &staging.add(&name),
                &options.cancel,
                watch,
                &mut warnings,
            )?;
            manifest.initramfs = Some(Artifact {
                url: name.clone(),
                checksum: digest,
                size: Some(size),
            });
            (name, digest, size)
        }
        Root::Disk(_, filesystem) => {
            let (format, rootfs) = formats(*filesystem);
            let name = format!("{}.{}", manifest.name, rootfs.as_str());
            let (mut done, total) = (0, tree.size());
            let built = filesystem::build(
                &format,
                &tree,
                &layers,
                &staging.add(&name),
                &options.cancel,
                &mut |bytes| {
                    done += bytes;
                    watch.packing(done, total);
                },
            )?;
            manifest.rootfs = Some(Rootfs {
                url: name.clone(),
                checksum: built.digest,
                size: Some(built.size),
                format: rootfs,
            });
            warnings.extend(built.warnings);
            (name, built.digest, built.size)
        }
    };
    manifest.kernel = kernel(
        recipe.plugin.kernel.as_ref(),
        folder,
        manifest.name.as_str(),
        &mut staging,
    )?;
    let manifest_name = format!("{}.manifest.json", manifest.name);
    staging.write(&manifest_name, &describe::bytes(&manifest)?)?;
    options.cancel.check()?;
    staging.publish()?;
    Ok(Built {
        manifest,
        manifest_path: options.output.join(manifest_name),
        artifact_path: options.output.join(name),
        size,
        unpacked_size: tree.size(),
        digest,
        warnings,
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

fn merge(
    layers: &[&dyn Layer],
    obtained: Option<&Obtained>,
    watch: &mut dyn Watch,
) -> Result<Tree, BuildError> {
    let Some(obtained) = obtained else {
        return Ok(Tree::new());
    };
    watch.reading(0, layers.len() as u64);
    let merged = volant_layers::merge(layers, &Limits::default());
    watch.reading(layers.len() as u64, layers.len() as u64);
    merged.map_err(|source| BuildError::Merge {
        image: obtained.image.name.clone(),
        source,
    })
}

/// What the recipe calls a file system, in the terms of who makes it and of who mounts it.
fn formats(filesystem: Filesystem) -> (filesystem::Format, RootfsFormat) {
    match filesystem.kind {
        FilesystemType::Squashfs => {
            let level = filesystem
                .compression_level
                .unwrap_or(filesystem::DEFAULT_LEVEL);
            (
                filesystem::Format::Squashfs { level },
                RootfsFormat::Squashfs,
            )
        }
        FilesystemType::Erofs => (filesystem::Format::Erofs, RootfsFormat::Erofs),
        FilesystemType::Ext4 => {
            let size = filesystem.size_mb.map(|size| u64::from(size) << 20);
            (filesystem::Format::Ext4 { size }, RootfsFormat::Ext4)
        }
    }
}

fn kernel(
    kernel: Option<&Kernel>,
    folder: &Path,
    name: &str,
    staging: &mut Staging,
) -> Result<Option<manifest::Kernel>, StagingError> {
    Ok(match kernel {
        None => None,
        Some(Kernel::Host(kernel)) => Some(manifest::Kernel::Host(*kernel)),
        Some(Kernel::Own(path)) => {
            let name = format!("{name}.kernel");
            let (checksum, size) = staging.copy(&name, &folder.join(path))?;
            Some(manifest::Kernel::Own(Artifact {
                url: name,
                checksum,
                size: Some(size),
            }))
        }
    })
}

/// Writes the compressed archive; gives its digest and size.
fn compress(
    tree: &Tree,
    layers: &[&dyn Layer],
    path: &Path,
    cancel: &Cancel,
    watch: &mut dyn Watch,
    warnings: &mut Vec<String>,
) -> Result<(Digest, u64), BuildError> {
    let failed = |source| StagingError::Write {
        path: path.to_owned(),
        source,
    };
    let measured = Measured {
        out: BufWriter::new(File::create(path).map_err(failed)?),
        hash: Sha256::new(),
        size: 0,
    };
    // Unpacked in a guest, gzip is as quick as zstd; level 9 makes it 1 % smaller in three times the time.
    let packed = GzBuilder::new()
        .mtime(0)
        .write(measured, Compression::new(6));
    let (mut done, total) = (0, tree.size());
    let written = initramfs::write(tree, layers, packed, cancel, &mut |bytes| {
        done += bytes;
        watch.packing(done, total);
    })?;
    warnings.extend(written.powerless.iter().map(|path| {
        format!("{path} loses its file capabilities: an initramfs cannot hold them; strategy \"oci_rootfs\" can")
    }));
    let mut measured = written.out.finish().map_err(failed)?;
    measured.flush().map_err(failed)?;
    Ok((
        Digest::from_bytes(measured.hash.finalize().into()),
        measured.size,
    ))
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

/// A layer whose reading ends when the build is to end.
struct Watched<'a> {
    layer: &'a volant_oci::ImageLayer,
    cancel: &'a Cancel,
}

impl Layer for Watched<'_> {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        let stream = Layer::open(self.layer)?;
        Ok(Box::new(WatchedStream {
            stream,
            cancel: self.cancel,
            since: 0,
        }))
    }

    fn name(&self) -> String {
        Layer::name(self.layer)
    }

    fn whiteouts(&self) -> bool {
        Layer::whiteouts(self.layer)
    }
}

struct WatchedStream<'a> {
    stream: Box<dyn Read + 'a>,
    cancel: &'a Cancel,
    since: usize,
}

impl Read for WatchedStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since >= STEP {
            self.since = 0;
            self.cancel.check().map_err(io::Error::other)?;
        }
        let count = self.stream.read(buffer)?;
        self.since += count;
        Ok(count)
    }
}
