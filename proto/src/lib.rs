//! The contracts between Volant's parts, generated from `proto/volant/*/v1/*.proto`.
//!
//! These are wire types: they stop at the face of each part, which turns them into types of its own.

#![allow(missing_debug_implementations, reason = "generated code")]
#![allow(clippy::all, clippy::pedantic, reason = "generated code")]

mod hidden;

/// Between a VM's supervisor on the host and the agent that is PID 1 in its guest.
pub mod agent {
    pub mod v1 {
        tonic::include_proto!("volant.agent.v1");

        /// The vsock port on which the supervisor listens for its guest's agent (CID 2, the host).
        ///
        /// No VMM counts so far for the host's own ends of connections into the guest: vhost-device-vsock counts from 0, and
        /// gives up for ever where it meets a port that is in use; Cloud Hypervisor counts from 2³⁰ to 2³¹.
        pub const HOST_PORT: u32 = (1 << 31) + 1024;
        /// The vsock port on which the agent listens for sessions of its host (`session.proto`).
        ///
        /// Below 1024: in the guest only who may serve such ports (`CAP_NET_BIND_SERVICE`) can take it when the agent is gone.
        pub const SESSION_PORT: u32 = 1023;
        /// The protocol that this build speaks; the supervisor refuses another with a clear word.
        pub const PROTOCOL: u32 = 2;
    }
}

/// One VM, served by its supervisor.
pub mod vm {
    pub mod v1 {
        tonic::include_proto!("volant.vm.v1");
    }
}

/// The address service.
pub mod ipam {
    pub mod v1 {
        tonic::include_proto!("volant.ipam.v1");
    }
}

/// What should exist: plugins and VM definitions.
pub mod registry {
    pub mod v1 {
        tonic::include_proto!("volant.registry.v1");
    }
}
