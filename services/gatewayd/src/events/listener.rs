//! The listener on the bus: signals of systemd and of supervisors, made events.
//!
//! Anybody may send a signal that looks like a supervisor's. It counts only from the one who owns the VM's name on the bus,
//! which the bus's policy gives to supervisors alone.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    num::NonZeroUsize,
};

use futures_util::StreamExt;
use jiff::Timestamp;
use serde_json::Value;
use tokio::task::JoinHandle;
use volant_dbus::vm::NAME_PREFIX;
use volant_spec::{Name, unit};
use zbus::{
    Connection, MatchRule, Message, MessageStream, OwnedVariant, Variant, fdo::DBusProxy,
    message::Type,
};

use super::{
    Events,
    units::{Units, vm_of_path},
};
use crate::{
    Systemd,
    lifecycle::EVERY_VM,
    systemd::{ActiveState, SystemdError},
};

/// Signals that wait to be read; this is read without a wait in between.
const QUEUE: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");
const UNITS: &str = "/org/freedesktop/systemd1/unit";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const VM: &str = "com.volantvm.Vm1";
/// The most details of an event that are taken, and the longest text in one.
const DETAILS: usize = 32;
const DETAIL: usize = 4096;

/// How many of those who left are still known.
const GONE: usize = 256;

struct Listener {
    events: Events,
    units: Units,
    /// Who owns the name of which VM, by their unique names.
    owners: HashMap<String, String>,
    /// Those who left, the last ones: what they said before may be read after that. A unique name is never given again.
    gone: VecDeque<String>,
}

/// Begins to listen. All that happens after this answer is told.
pub async fn begin(systemd: &Systemd, events: Events) -> Result<JoinHandle<()>, SystemdError> {
    let (bus, room) = systemd.bus().await;
    let bus = bus.clone();
    drop(room);
    let streams = Streams::open(&bus).await.map_err(SystemdError::Subscribe)?;
    let mut listener = Listener {
        events,
        units: Units::default(),
        owners: owners(systemd).await.map_err(SystemdError::Subscribe)?,
        gone: VecDeque::new(),
    };
    for (unit, state) in systemd.states(EVERY_VM).await? {
        if let Some(vm) = unit::vm_of(&unit) {
            listener.units.is(vm.as_str(), state);
        }
    }
    Ok(tokio::spawn(listener.listen(streams)))
}

struct Streams {
    units: MessageStream,
    vms: MessageStream,
    names: MessageStream,
}

impl Streams {
    async fn open(bus: &Connection) -> zbus::Result<Self> {
        let signal = || MatchRule::builder().msg_type(Type::Signal);
        let units = signal()
            .path_namespace(UNITS)
            .interface(PROPERTIES)
            .member("PropertiesChanged")
            .arg(0, UNIT)
            .build()?;
        let vms = signal().interface(VM).member("Happened").build()?;
        let names = signal()
            .sender("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .member("NameOwnerChanged")
            .arg0ns(NAME_PREFIX)
            .build()?;
        Ok(Self {
            units: MessageStream::for_match_rule(units, bus, Some(QUEUE)).await?,
            vms: MessageStream::for_match_rule(vms, bus, Some(QUEUE)).await?,
            names: MessageStream::for_match_rule(names, bus, Some(QUEUE)).await?,
        })
    }
}

/// Who owns a supervisor's name now.
async fn owners(systemd: &Systemd) -> zbus::Result<HashMap<String, String>> {
    let (bus, _room) = systemd.bus().await;
    let proxy = DBusProxy::new(bus).await?;
    let mut owners = HashMap::new();
    for name in proxy.list_names().await? {
        let Some(vm) = vm_of_bus_name(name.as_str()) else {
            continue;
        };
        // It may be gone again.
        if let Ok(owner) = proxy.get_name_owner(name.inner().clone()).await {
            owners.insert(owner.to_string(), vm);
        }
    }
    Ok(owners)
}

/// The inverse of `volant_dbus::vm::bus_name`.
fn vm_of_bus_name(name: &str) -> Option<String> {
    let vm = name.strip_prefix(NAME_PREFIX)?.strip_prefix('.')?;
    let vm = vm.strip_prefix('_').unwrap_or(vm);
    vm.parse::<Name>().ok()?;
    Some(vm.to_owned())
}

impl Listener {
    async fn listen(mut self, streams: Streams) {
        let Streams {
            mut units,
            mut vms,
            mut names,
        } = streams;
        loop {
            let message = tokio::select! {
                // Who owns a name is known before what the owner says.
                biased;
                message = names.next() => message.map(|message| (message, Self::name as fn(&mut Self, &Message) -> zbus::Result<()>)),
                message = units.next() => message.map(|message| (message, Self::unit as _)),
                message = vms.next() => message.map(|message| (message, Self::vm as _)),
            };
            let Some((message, take)) = message else {
                return;
            };
            match message {
                Ok(message) => {
                    if let Err(error) = take(&mut self, &message) {
                        tracing::debug!("a signal is not as it must be: {error}");
                    }
                }
                Err(error) => tracing::warn!("the bus: {error}"),
            }
        }
    }

    fn name(&mut self, message: &Message) -> zbus::Result<()> {
        let body = message.body();
        let (name, old, new): (&str, &str, &str) = body.deserialize()?;
        if let Some(vm) = vm_of_bus_name(name) {
            if !old.is_empty() {
                self.gone.push_back(old.to_owned());
            }
            if self.gone.len() > GONE
                && let Some(old) = self.gone.pop_front()
            {
                self.owners.remove(&old);
            }
            if !new.is_empty() {
                self.owners.insert(new.to_owned(), vm);
            }
        }
        Ok(())
    }

    fn unit(&mut self, message: &Message) -> zbus::Result<()> {
        let header = message.header();
        let Some(vm) = header.path().and_then(|path| vm_of_path(path.as_str())) else {
            return Ok(());
        };
        let body = message.body();
        let (_, changed, _): (&str, HashMap<&str, Variant<'_>>, Vec<&str>) = body.deserialize()?;
        let Some(Variant::Str(state)) = changed.get("ActiveState") else {
            return Ok(());
        };
        if let Some(state) = ActiveState::parse(state)
            && let Some(event) = self.units.becomes(&vm, state)
        {
            self.events.tell(&vm, event);
        }
        Ok(())
    }

    fn vm(&mut self, message: &Message) -> zbus::Result<()> {
        let header = message.header();
        let Some(vm) = header
            .sender()
            .and_then(|sender| self.owners.get(sender.as_str()))
        else {
            return Ok(());
        };
        let body = message.body();
        let (what, time, details): (&str, u64, HashMap<String, OwnedVariant>) =
            body.deserialize()?;
        let time = i64::try_from(time)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .unwrap_or_else(Timestamp::now);
        let details: BTreeMap<_, _> = details
            .into_iter()
            .take(DETAILS)
            .filter_map(|(name, value)| Some((name, json(&value)?)))
            .collect();
        self.events.tell_at(time, vm, what, details);
        Ok(())
    }
}

/// A plain value; others are left out.
fn json(value: &Variant<'_>) -> Option<Value> {
    use Variant as V;
    Some(match value {
        V::Str(text) => Value::from(text.chars().take(DETAIL).collect::<String>()),
        V::Bool(yes) => Value::from(*yes),
        V::U8(number) => Value::from(*number),
        V::I16(number) => Value::from(*number),
        V::U16(number) => Value::from(*number),
        V::I32(number) => Value::from(*number),
        V::U32(number) => Value::from(*number),
        V::I64(number) => Value::from(*number),
        V::U64(number) => Value::from(*number),
        V::F64(number) => Value::from(*number),
        V::Variant(inner) => return json(inner),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_name_tells_the_vm() {
        for vm in ["web", "9-lives", "a-1"] {
            let name = volant_dbus::vm::bus_name(vm);
            assert_eq!(vm_of_bus_name(&name).as_deref(), Some(vm));
        }
        for name in [
            "com.volantvm.Ipam1",
            "com.volantvm.vmx.web",
            "com.volantvm.vm",
            "com.volantvm.vm.a.b",
        ] {
            assert_eq!(vm_of_bus_name(name), None, "{name}");
        }
    }
}
