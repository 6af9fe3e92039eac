//! What the answers of registryd and ipamd mean to a REST client: the one place where a gRPC code becomes a problem.

use tonic::{Code, Status};

use crate::{Kind, Problem};

/// What was asked: the same code means another thing for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Plugin,
    RemovePlugin,
    InstallPlugin,
    InstallByName,
    PullPlugin,
    Search,
    Upkeep,
    Blob,
    Vm,
    CreateVm,
    Config,
    Secret,
    Lease,
}

/// The problem that a refused call is. The callee's words are the detail.
#[must_use]
pub fn problem(asked: Asked, status: &Status) -> Problem {
    Problem::new(kind(asked, status), detail(asked, status))
}

/// What a callee says beside the code when it is the host's configuration that is wrong.
const KIND: &str = "volant-kind";
const MISCONFIGURED: &str = "misconfigured";

fn kind(asked: Asked, status: &Status) -> Kind {
    let told = status.metadata().get(KIND);
    if told.is_some_and(|kind| kind == MISCONFIGURED) {
        return Kind::Misconfigured;
    }
    kind_of(asked, status.code())
}

/// No arm for the rest: a code or a call that is new must be decided on.
fn kind_of(asked: Asked, code: Code) -> Kind {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Kind::InvalidRequest,
        Code::NotFound => match asked {
            Asked::Plugin | Asked::RemovePlugin => Kind::NoSuchPlugin,
            Asked::InstallByName => Kind::NotInIndex,
            Asked::PullPlugin => Kind::NotInRegistry,
            Asked::Blob => Kind::NoSuchBlob,
            Asked::Vm | Asked::Config | Asked::Secret => Kind::NoSuchVm,
            Asked::CreateVm => Kind::UnknownPlugin,
            // Its URL, or that of an artifact.
            Asked::InstallPlugin => Kind::NotInstallable,
            Asked::Search | Asked::Upkeep | Asked::Lease => Kind::Internal,
        },
        Code::AlreadyExists => match asked {
            Asked::CreateVm => Kind::VmExists,
            Asked::Plugin
            | Asked::RemovePlugin
            | Asked::InstallPlugin
            | Asked::InstallByName
            | Asked::PullPlugin
            | Asked::Search
            | Asked::Upkeep
            | Asked::Blob
            | Asked::Vm
            | Asked::Config
            | Asked::Secret
            | Asked::Lease => Kind::Internal,
        },
        Code::FailedPrecondition => match asked {
            Asked::RemovePlugin => Kind::PluginInUse,
            Asked::InstallPlugin => Kind::MissingArtifact,
            Asked::InstallByName | Asked::PullPlugin => Kind::NotInstallable,
            Asked::CreateVm => Kind::UnusablePlugin,
            Asked::Config => Kind::UnusableConfig,
            Asked::Vm | Asked::Secret => Kind::BeingDeleted,
            Asked::Plugin | Asked::Search | Asked::Upkeep => Kind::Misconfigured,
            Asked::Blob | Asked::Lease => Kind::Internal,
        },
        Code::PermissionDenied => match asked {
            Asked::InstallPlugin | Asked::InstallByName | Asked::PullPlugin => {
                Kind::UntrustedPlugin
            }
            Asked::Plugin
            | Asked::RemovePlugin
            | Asked::Search
            | Asked::Upkeep
            | Asked::Blob
            | Asked::Vm
            | Asked::CreateVm
            | Asked::Config
            | Asked::Secret
            | Asked::Lease => Kind::Internal,
        },
        Code::ResourceExhausted => Kind::NoSpace,
        // What a server gave was not what was to come.
        Code::Aborted => match asked {
            Asked::InstallPlugin | Asked::InstallByName | Asked::PullPlugin => Kind::NotInstallable,
            // Another version is the newest.
            Asked::Config => Kind::VersionConflict,
            Asked::Plugin
            | Asked::RemovePlugin
            | Asked::Search
            | Asked::Upkeep
            | Asked::Blob
            | Asked::Vm
            | Asked::CreateVm
            | Asked::Secret
            | Asked::Lease => Kind::Unavailable,
        },
        // Cancelled and Unknown are what a call gets whose callee died under it; ours never answer so.
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => {
            Kind::Unavailable
        }
        Code::Ok
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => Kind::Internal,
    }
}

fn detail(asked: Asked, status: &Status) -> String {
    let callee = match asked {
        Asked::Plugin
        | Asked::RemovePlugin
        | Asked::InstallPlugin
        | Asked::InstallByName
        | Asked::PullPlugin
        | Asked::Search
        | Asked::Upkeep
        | Asked::Blob
        | Asked::Vm
        | Asked::CreateVm
        | Asked::Config
        | Asked::Secret => "registryd",
        Asked::Lease => "ipamd",
    };
    let message = status.message();
    match (kind(asked, status), status.code()) {
        // An origin that could not be fetched from: registryd's own words say it all.
        (Kind::Unavailable, Code::Unavailable)
            if matches!(
                asked,
                Asked::InstallPlugin | Asked::InstallByName | Asked::PullPlugin | Asked::Search
            ) =>
        {
            message.to_owned()
        }
        (Kind::Unavailable | Kind::Internal, _) => {
            format!("{callee} did not do it: {message}; see: journalctl -u volant-{callee}")
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_means_what_was_asked() {
        let cases = [
            (Asked::Vm, Code::NotFound, Kind::NoSuchVm),
            (Asked::CreateVm, Code::NotFound, Kind::UnknownPlugin),
            (Asked::Plugin, Code::NotFound, Kind::NoSuchPlugin),
            (Asked::Blob, Code::NotFound, Kind::NoSuchBlob),
            (Asked::CreateVm, Code::AlreadyExists, Kind::VmExists),
            (Asked::CreateVm, Code::InvalidArgument, Kind::InvalidRequest),
            (
                Asked::RemovePlugin,
                Code::FailedPrecondition,
                Kind::PluginInUse,
            ),
            (
                Asked::InstallPlugin,
                Code::FailedPrecondition,
                Kind::MissingArtifact,
            ),
            (Asked::InstallByName, Code::NotFound, Kind::NotInIndex),
            (Asked::PullPlugin, Code::NotFound, Kind::NotInRegistry),
            (
                Asked::PullPlugin,
                Code::FailedPrecondition,
                Kind::NotInstallable,
            ),
            (Asked::Upkeep, Code::FailedPrecondition, Kind::Misconfigured),
            (
                Asked::InstallPlugin,
                Code::PermissionDenied,
                Kind::UntrustedPlugin,
            ),
            (
                Asked::CreateVm,
                Code::FailedPrecondition,
                Kind::UnusablePlugin,
            ),
            (Asked::Vm, Code::FailedPrecondition, Kind::BeingDeleted),
            (Asked::InstallPlugin, Code::NotFound, Kind::NotInstallable),
            (Asked::InstallPlugin, Code::Aborted, Kind::NotInstallable),
            (Asked::InstallByName, Code::Aborted, Kind::NotInstallable),
            (Asked::InstallByName, Code::Unavailable, Kind::Unavailable),
            (Asked::Blob, Code::ResourceExhausted, Kind::NoSpace),
            (Asked::Lease, Code::Unavailable, Kind::Unavailable),
            (Asked::Vm, Code::DataLoss, Kind::Internal),
            (Asked::Config, Code::Aborted, Kind::VersionConflict),
            (
                Asked::Config,
                Code::FailedPrecondition,
                Kind::UnusableConfig,
            ),
            (Asked::Secret, Code::NotFound, Kind::NoSuchVm),
        ];
        for (asked, code, expected) in cases {
            let problem = problem(asked, &Status::new(code, "why"));
            assert_eq!(problem.kind, expected, "{asked:?} {code:?}");
            assert!(problem.detail.contains("why"), "{problem:?}");
        }
    }

    #[test]
    fn a_configuration_that_is_not_valid_is_told_whatever_was_asked() {
        for asked in [
            Asked::InstallPlugin,
            Asked::InstallByName,
            Asked::PullPlugin,
            Asked::Search,
        ] {
            let mut status = Status::failed_precondition("volant.toml");
            status
                .metadata_mut()
                .insert(KIND, MISCONFIGURED.parse().unwrap());
            assert_eq!(problem(asked, &status).kind, Kind::Misconfigured);
        }
    }

    #[test]
    fn a_service_that_is_down_is_named_with_its_journal() {
        let down = Status::unavailable("no connection");
        let problem = problem(Asked::Lease, &down);
        assert!(
            problem.detail.ends_with("see: journalctl -u volant-ipamd"),
            "{problem}"
        );
    }
}
