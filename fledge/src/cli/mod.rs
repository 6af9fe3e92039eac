//! The command line: arguments in, text for people (or JSON) out.

mod interrupt;
mod keys;
mod progress;

pub mod build;
pub mod inspect;
pub mod keygen;
pub mod push;
pub mod schema;
pub mod sign;
pub mod verify;

/// How a result is written.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}
