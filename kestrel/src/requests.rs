//! Who may ask the machine to go down: the host, the power button, and root in the guest by a signal to PID 1.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use nix::fcntl::OFlag;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep},
};
use volant_proto::agent::v1::watch_commands_response::Command;

use crate::{
    clock,
    host::Host,
    kernel::Kernel,
    life::{Ask, Reason},
    logs::Logs,
};

/// The signals and what they ask for: busybox's `halt`, `poweroff` and `reboot` send `SIGUSR1`, `SIGUSR2` and `SIGTERM`,
/// the kernel `SIGINT` for control-alt-delete, a UPS's daemon `SIGPWR`.
const SIGNALS: &[(i32, Reason)] = &[
    (nix::libc::SIGUSR1, Reason::GuestPowerOff),
    (nix::libc::SIGUSR2, Reason::GuestPowerOff),
    (nix::libc::SIGPWR, Reason::GuestPowerOff),
    (nix::libc::SIGTERM, Reason::GuestReboot),
    (nix::libc::SIGINT, Reason::GuestReboot),
];
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a host that is being replaced is dialled before the next attempt begins.
const GREETED_WITHIN: Duration = Duration::from_secs(5);
const KEY_POWER: usize = 116;
/// `struct input_event` of a 64-bit kernel: the time in 16 bytes, then type, code and value.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;

/// Asks for what each signal means, from now on.
///
/// # Errors
/// A signal cannot be handled.
pub fn watch_signals(asks: &mpsc::Sender<Ask>) -> io::Result<()> {
    for (number, reason) in SIGNALS {
        let mut arrived = signal(SignalKind::from_raw(*number))?;
        let asks = asks.clone();
        tokio::spawn(async move {
            while arrived.recv().await.is_some() {
                ask(&asks, *reason, None);
            }
        });
    }
    Ok(())
}

/// A full queue holds an ask already; a second one would change nothing.
fn ask(asks: &mpsc::Sender<Ask>, reason: Reason, grace: Option<Duration>) {
    let _ = asks.try_send(Ask { reason, grace });
}

/// Carries the host's commands over, for as long as the guest lives. When the connection breaks, it is the first to say
/// hello by the next one.
pub async fn watch_host(host: Host, kernel: impl Kernel, asks: mpsc::Sender<Ask>, logs: Arc<Logs>) {
    let mut pause = FIRST_PAUSE;
    let mut is_heard = true;
    loop {
        let hellos = host.hellos();
        match host.watch_commands().await {
            Ok(mut commands) => {
                is_heard = true;
                let begun = Instant::now();
                while let Ok(Some(message)) = commands.message().await {
                    obey(message.command, &kernel, &asks, &logs);
                }
                // A stream that ends at once is no reason to hurry.
                if begun.elapsed() >= LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
            }
            // Once, not at every attempt.
            Err(error) if std::mem::replace(&mut is_heard, false) => {
                logs.say(&format!("cannot watch for commands: {error}"));
            }
            Err(_) => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        // A host that is not there yet, or refuses, is asked again with the next stream.
        let _ = host.greet(hellos, GREETED_WITHIN).await;
    }
}

fn obey(command: Option<Command>, kernel: &impl Kernel, asks: &mpsc::Sender<Ask>, logs: &Logs) {
    match command {
        Some(Command::Shutdown(shutdown)) => {
            let grace = Duration::from_millis(shutdown.grace_ms.into());
            ask(asks, Reason::Requested, Some(grace));
        }
        Some(Command::SetClock(wanted)) => {
            let time = Duration::from_nanos(wanted.time_unix_ns);
            clock::follow(kernel, time, Duration::ZERO, logs);
        }
        None => logs.say("the host sent a command that this agent does not know"),
    }
}

/// Watches all power buttons that the machine has; it may have none.
///
/// # Errors
/// A button is there and cannot be watched.
pub fn watch_power_buttons(asks: &mpsc::Sender<Ask>) -> io::Result<()> {
    for device in power_buttons() {
        let button = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(device)?;
        // SAFETY: a `File` owns its descriptor and always gives the same one, and `watch_button` only reads by it.
        #[allow(unsafe_code, reason = "the caller of epoll answers for the descriptor")]
        let button = unsafe { AsyncFd::register(button) }?;
        tokio::spawn(watch_button(button, asks.clone()));
    }
    Ok(())
}

async fn watch_button(button: AsyncFd<File>, asks: mpsc::Sender<Ask>) {
    let mut events = [0; 16 * EVENT_BYTES];
    while let Ok(mut ready) = button.readable().await {
        match ready.try_io(|button| button.get_ref().read(&mut events)) {
            // The device is gone.
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) if is_power_pressed(&events[..count]) => {
                ask(&asks, Reason::PowerButton, None);
            }
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}

/// The input devices that have a power key.
fn power_buttons() -> Vec<PathBuf> {
    // A kernel without input devices has no such folder.
    let Ok(devices) = fs::read_dir("/sys/class/input") else {
        return Vec::new();
    };
    devices
        .flatten()
        .filter(|device| device.file_name().as_encoded_bytes().starts_with(b"event"))
        .filter(|device| {
            fs::read_to_string(device.path().join("device/capabilities/key"))
                .is_ok_and(|keys| has_key(&keys, KEY_POWER))
        })
        .map(|device| PathBuf::from("/dev/input").join(device.file_name()))
        .collect()
}

/// The kernel writes a device's keys as words of 64 bits in hexadecimal, the highest first.
fn has_key(keys: &str, key: usize) -> bool {
    keys.split_whitespace()
        .rev()
        .nth(key / 64)
        .and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|word| word >> (key % 64) & 1 == 1)
}

fn is_power_pressed(events: &[u8]) -> bool {
    events.chunks_exact(EVENT_BYTES).any(|event| {
        let kind = u16::from_ne_bytes([event[16], event[17]]);
        let code = u16::from_ne_bytes([event[18], event[19]]);
        let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
        kind == EV_KEY && usize::from(code) == KEY_POWER && value == 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_key_is_found_in_the_mask() {
        for (keys, expected) in [
            ("10000000000000 0\n", true),
            ("10000000000000", false),
            ("0 10000000000000 0\n", true),
            ("fffffffffffffffe\n", false),
            ("", false),
            ("zz 0", false),
        ] {
            assert_eq!(has_key(keys, KEY_POWER), expected, "{keys}");
        }
    }

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        let press = event(EV_KEY, 116, 1);
        let sync = event(0, 0, 0);
        let release = event(EV_KEY, 116, 0);
        let other = event(EV_KEY, 30, 1);
        for (events, expected) in [
            (press.clone(), true),
            ([sync.clone(), press.clone()].concat(), true),
            ([release, sync, other].concat(), false),
            (press[..23].to_vec(), false),
            (vec![], false),
        ] {
            assert_eq!(is_power_pressed(&events), expected);
        }
    }
}
