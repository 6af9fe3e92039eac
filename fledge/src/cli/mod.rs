//! The command line: arguments in, text for people (or JSON) out.

mod keys;

pub mod keygen;
pub mod sign;
pub mod verify;
