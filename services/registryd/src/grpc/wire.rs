//! From the wire's messages to the registry's types, and back.

use tonic::Status;
use volant_proto::registry::v1::{self, install_plugin_request, install_plugin_response};
use volant_spec::{
    Digest, Name, PluginRef,
    plugin::PluginRefError,
    vm_config::{SecretName, SecretNameError, VmConfig},
};

use crate::{
    Finding, Found, Install, Installed, Original, Progress, Source, Trust, status,
    store::{ConfigVersion, NewConfig, NewVm, Plugin, SecretValue, Vm},
};

/// The longest reason of a change that is kept, in bytes.
const MAX_REASON: usize = 256;

pub(super) fn digest(text: &str) -> Result<Digest, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(status::chain(&error)))
}

pub(super) fn vm_name(text: &str) -> Result<Name, Status> {
    text.parse().map_err(|error: volant_spec::name::NameError| {
        Status::invalid_argument(format!("no VM can be named so: {error}"))
    })
}

pub(super) fn plugin_ref(text: &str) -> Result<PluginRef, Status> {
    text.parse().map_err(|error: PluginRefError| {
        Status::invalid_argument(format!("no plugin can be named so: {error}"))
    })
}

pub(super) fn install(request: v1::InstallPluginRequest) -> Result<Install, Status> {
    let signature = Some(request.signature).filter(|signature| !signature.is_empty());
    let source = match request.source {
        Some(install_plugin_request::Source::Manifest(manifest)) => Source::Bytes(Original {
            manifest,
            signature,
        }),
        Some(install_plugin_request::Source::ManifestUrl(url)) => Source::Url(url),
        Some(install_plugin_request::Source::OciReference(reference)) => Source::Oci(reference),
        Some(install_plugin_request::Source::Name(name)) => Source::Name(plugin_ref(&name)?),
        None => {
            return Err(Status::invalid_argument(
                "an install needs a manifest, a URL, an oci:// reference or a name",
            ));
        }
    };
    Ok(Install {
        source,
        allow_downgrade: request.allow_downgrade,
    })
}

pub(super) fn new_vm(request: v1::CreateVmRequest) -> Result<NewVm, Status> {
    let mut config = config(&request.config)?;
    config.cpu_cores = request.cpu_cores.or(config.cpu_cores);
    config.memory_mb = request.memory_mb.or(config.memory_mb);
    if !request.vmm.is_empty() {
        config.vmm = Some(request.vmm.parse().map_err(Status::invalid_argument)?);
    }
    let secrets = request.secrets.into_iter().map(secret);
    Ok(NewVm {
        name: vm_name(&request.name)?,
        plugin: plugin_ref(&request.plugin)?,
        config,
        secrets: secrets.collect::<Result<_, _>>()?,
    })
}

pub(super) fn config(json: &[u8]) -> Result<VmConfig, Status> {
    VmConfig::parse(json).map_err(|error| Status::invalid_argument(status::chain(&error)))
}

pub(super) fn new_config(request: &v1::SetVmConfigRequest) -> Result<NewConfig, Status> {
    if request.reason.len() > MAX_REASON || request.reason.contains(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "the reason of a change is one line of at most {MAX_REASON} characters"
        )));
    }
    let reason = match request.reason.as_str() {
        "" => "set",
        reason => reason,
    };
    Ok(NewConfig {
        config: config(&request.config)?,
        expected: Some(request.expected_version).filter(|version| *version > 0),
        reason: reason.to_owned(),
    })
}

pub(super) fn secret_name(text: &str) -> Result<SecretName, Status> {
    text.parse()
        .map_err(|error: SecretNameError| Status::invalid_argument(error.to_string()))
}

pub(super) fn secret(secret: v1::SecretValue) -> Result<(SecretName, SecretValue), Status> {
    Ok((secret_name(&secret.name)?, SecretValue(secret.value)))
}

pub(super) fn config_version(version: ConfigVersion) -> v1::VmConfigVersion {
    v1::VmConfigVersion {
        version: version.version,
        config: version.config.into_bytes(),
        created_at: version.created_at,
        reason: version.reason,
    }
}

pub(super) fn vm(vm: Vm) -> v1::Vm {
    v1::Vm {
        config: vm.config.into_bytes(),
        config_version: vm.config_version,
        secrets: vm.secrets,
        uuid: vm.uuid,
        name: vm.name,
        plugin: vm.plugin,
        plugin_version: vm.plugin_version,
        cpu_cores: vm.cpu_cores,
        memory_mb: vm.memory_mb,
        vmm: vm.vmm,
        created_at: vm.created_at,
        deleting: vm.deleting,
    }
}

/// As it is in lists.
pub(super) fn plugin(plugin: Plugin) -> v1::Plugin {
    v1::Plugin {
        name: plugin.name.into(),
        version: plugin.version.into(),
        manifest: Vec::new(),
        installed_at: plugin.installed_at,
        size_bytes: plugin.size_bytes,
        enabled: plugin.enabled,
        manifest_digest: plugin.manifest_digest.into(),
        signed_by: plugin.signed_by.map(|by| v1::SignedBy {
            key: by.key,
            key_id: by.key_id,
            comment: by.comment,
        }),
        source: plugin.source,
        vms: plugin.vms,
        description: plugin.description,
        warnings: Vec::new(),
    }
}

pub(super) fn plugin_with(found: Plugin, original: Original) -> v1::Plugin {
    v1::Plugin {
        manifest: original.manifest,
        ..plugin(found)
    }
}

pub(super) fn plugin_event(installed: Installed) -> v1::InstallPluginResponse {
    let plugin = v1::Plugin {
        warnings: installed.warnings,
        ..plugin_with(installed.plugin, installed.original)
    };
    v1::InstallPluginResponse {
        event: Some(install_plugin_response::Event::Plugin(plugin)),
    }
}

pub(super) fn progress_event(progress: Progress) -> v1::InstallPluginResponse {
    let progress = v1::Progress {
        artifact: progress.artifact,
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes.unwrap_or(0),
    };
    v1::InstallPluginResponse {
        event: Some(install_plugin_response::Event::Progress(progress)),
    }
}

pub(super) fn finding(finding: Finding) -> v1::VerifyPluginsResponse {
    v1::VerifyPluginsResponse {
        plugin: finding.plugin.into(),
        version: finding.version.into(),
        subject: finding.subject,
        ok: finding.ok,
        detail: finding.detail,
    }
}

pub(super) fn found(found: Found) -> v1::FoundPlugin {
    v1::FoundPlugin {
        name: found.name,
        description: found.description,
        versions: found.versions,
        index: found.index,
        installed: found.installed,
    }
}

pub(super) fn trust(trust: Trust) -> v1::GetTrustResponse {
    let keys = trust.keyring.keys().map(|key| v1::TrustedKey {
        name: key.name.clone(),
        key_id: key.key.id().to_string(),
        public_key: key.key.to_string(),
        plugins: key.plugins.iter().map(ToString::to_string).collect(),
        comment: key.comment.clone().unwrap_or_default(),
    });
    v1::GetTrustResponse {
        policy: trust.config.plugins.signatures.as_str().to_owned(),
        keys: keys.collect(),
        problems: trust.problems,
    }
}
