//! ipamd in network namespaces of the tests' own: a real kernel, real packets, nothing of the machine's touched.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bridge;
mod faces;
mod firewall;
mod guests;
mod host;
