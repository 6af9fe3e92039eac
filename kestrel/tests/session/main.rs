//! What a host does in a guest, against real programs, terminals, files and ports.

mod client;
mod connect;
mod exec;
mod files;
mod opening;
mod terminal;
