//! What Cloud Hypervisor says of its machine's life (`--event-monitor`).

use serde::Deserialize;

/// Events have an empty line between them.
pub(super) const MARK: &[u8] = b"\n\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The guest reset; Cloud Hypervisor boots it again by itself, unless it is stopped.
    Rebooting,
    /// The machine is gone, whether the guest powered it off or it failed.
    Shutdown,
    Other,
}

#[derive(Deserialize)]
struct Wire {
    source: String,
    event: String,
}

/// What an event says to us. What is no event says nothing.
pub(super) fn parse(bytes: &[u8]) -> Event {
    match serde_json::from_slice::<Wire>(bytes) {
        Ok(wire) if wire.source == "vm" => match wire.event.as_str() {
            "rebooting" => Event::Rebooting,
            "shutdown" => Event::Shutdown,
            _ => Event::Other,
        },
        _ => Event::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_of_a_real_cloud_hypervisor_are_understood() {
        for (source, event, expected) in [
            ("vm", "rebooting", Event::Rebooting),
            ("vm", "shutdown", Event::Shutdown),
            ("vmm", "shutdown", Event::Other),
            ("vm", "booted", Event::Other),
        ] {
            let text = format!(
                "{{\n  \"timestamp\": {{\n    \"secs\": 0,\n    \"nanos\": 5\n  }},\n  \"source\": \"{source}\",\n  \"event\": \"{event}\",\n  \"properties\": null\n}}"
            );
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(parse(b""), Event::Other);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
