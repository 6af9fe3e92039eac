//! OCI images and registries: what fledge needs to build from an image and to publish a plugin, and registryd to
//! install one.
//!
//! A [`Reference`] names what is wanted, a [`Client`] talks to registries, a [`Source`] is anything that gives an
//! [`Image`] (registry, layout, archive, directory, tar), [`plugin`] is Volant's own artifact. Everything that comes
//! from a registry or a file is bounded in size, and checked against its digest before it is believed.
//! Merging layers into a tree is not done here.

mod archive;
pub mod auth;
mod blob;
mod cache;
mod client;
mod config;
mod error;
mod http;
mod image;
mod index;
mod layout;
pub mod manifest;
pub mod plugin;
mod pull;
mod push;
mod reference;
pub mod registries_conf;
mod source;
mod tarindex;
mod token;
mod tree;
mod verify;

pub use auth::Credentials;
pub use blob::BlobLayer;
pub use cache::{Cache, CacheError, Progress, ProgressFn};
pub use client::{Client, ClientError};
pub use config::{ConfigError, Healthcheck, ImageConfig, Port};
pub use error::{RegistryError, Trouble};
pub use http::Limits;
pub use image::{Image, ImageError, ImageLayer};
pub use index::{Platform, PlatformError};
pub use pull::{BlobStream, PulledManifest};
pub use push::BlobSource;
pub use reference::{Reference, ReferenceError};
pub use registries_conf::Registries;
pub use source::{Loader, Source, SourceError};
pub use tree::TreeLayer;
pub use verify::{Hasher, digest_of};
pub use volant_spec::Digest;
