//! A vmd that executes its binary in its own place, on a bus of the test's own: its VMM, its guest and its clients go on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures_util::StreamExt;
use support::{
    FakeAgent,
    bus::{Bus, Vmd},
    guest::client,
    services::{FakeIpam, FakeRegistry, definition},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use volant_dbus::{ipam, registry, registry::VmDefinition, vm};
use volant_proto::{
    agent::v1::{SessionEnd, SessionOpened},
    vm::v1::{
        ConsoleOpen, ConsoleRequest, ConsoleResponse, ExecAttach, ExecRequest, ExecResponse,
        ExecStart, PauseRequest, ResumeRequest, StdinEnd, console_request, console_response,
        exec_request, exec_response, vm_service_client::VmServiceClient,
    },
};
use volant_session::{Frame, Kind, Reader, Writer};
use zbus::{Connection, proxy::CacheProperties};

const LONG: Duration = Duration::from_secs(30);
const VHOST: &str = "FAKE_VHOST";
const GUEST: &str = "FAKE_GUEST";

/// QEMU as far as vmd sees it. Its guest repeats what it reads on its console, and powers off at the word.
const FAKE_QEMU: &str = r#"#!/bin/bash
for argument; do
    case $argument in
    socket,id=monitor,fd=*) monitor=${argument##*=} ;;
    socket,id=console,fd=*) console=${argument##*=} ;;
    esac
done
say() { echo "$1" >&$monitor; }
say '{"QMP": {"version": {}, "capabilities": []}}'
echo 'the guest begins' >&$console
trap 'exit 0' TERM
while read -r line <&$console; do
    if [ "$line" = off ]; then
        say '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}'
        kill -TERM $$
        exit
    fi
    echo "heard $line" >&$console
done &
while read -r line <&$monitor; do
    id=${line##*\"id\":}
    id=${id%%\}*}
    say "{\"return\": {}, \"id\": ${id%%,*}}"
done
"#;

/// Is vhost-device-vsock when a script says so, with a guest whose programs repeat what they read; and does nothing else.
#[tokio::test]
async fn the_fake_vsock_is_this_test() {
    if let (Ok(vhost), Ok(guest)) = (env::var(VHOST), env::var(GUEST)) {
        let guest = UnixListener::bind(guest).unwrap();
        let vhost = UnixListener::bind(vhost).unwrap();
        let _qemu = vhost.accept().await.unwrap();
        loop {
            let (stream, _) = guest.accept().await.unwrap();
            tokio::spawn(echo(stream));
        }
    }
}

async fn echo(stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = String::new();
    (&mut read).take(64).read_line(&mut line).await.unwrap();
    write.write_all(b"OK 1\n").await.unwrap();
    let (mut reader, mut writer) = (Reader::new(read), Writer(write));
    while let Ok(Some(frame)) = reader.next().await {
        let answer = match frame.kind {
            Kind::Open => Frame::message(Kind::Opened, &SessionOpened::default()),
            Kind::Input => Frame::new(Kind::Output, frame.payload),
            _ => Frame::message(
                Kind::End,
                &SessionEnd {
                    code: 3,
                    ..SessionEnd::default()
                },
            ),
        };
        writer.send(&answer).await.unwrap();
    }
}

/// A vmd whose VM boots.
struct Site {
    vmd: Vmd,
    _host: Connection,
    client: Connection,
    programs: PathBuf,
    sockets: PathBuf,
    /// Last: it ends after those who use it.
    _bus: Bus,
}

fn program(path: &Path, text: &str) {
    // Not written where it may be executed just now.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, path).unwrap();
}

impl Site {
    async fn start() -> Option<Self> {
        let bus = Bus::start().await?;
        let folder = bus.folder.path();
        let programs = folder.join("programs");
        fs::create_dir(&programs).unwrap();
        // One of them removes itself, as the VM's user.
        fs::set_permissions(&programs, fs::Permissions::from_mode(0o777)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_vmd"), programs.join("vmd")).unwrap();
        program(&programs.join("qemu-system-x86_64"), FAKE_QEMU);
        let vsock = format!(
            "#!/bin/sh\nexport {VHOST}=\"$4\" {GUEST}=\"$6\"\n\
             exec '{}' --exact the_fake_vsock_is_this_test --nocapture >/dev/null\n",
            env::current_exe().unwrap().display()
        );
        program(&programs.join("vhost-device-vsock"), &vsock);

        // The head of a bzImage: 0xaa55 at 0x1fe, and the magic after it.
        let mut image = vec![0; 0x400];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(folder.join("kernel"), image).unwrap();
        let config = folder.join("volant.toml");
        let text = format!("[vm]\nvmm = 'qemu'\nkernel = '{}/kernel'", folder.display());
        fs::write(&config, text).unwrap();

        let host = bus.connect().await;
        let registry = FakeRegistry {
            answer: Ok(VmDefinition {
                vmm: "qemu".to_owned(),
                ..definition()
            }),
            artifacts: vec![("initramfs", "cpio")],
        };
        let objects = host.object_server();
        objects.at(registry::PATH, registry).await.unwrap();
        objects.at(ipam::PATH, FakeIpam).await.unwrap();
        host.request_name(registry::NAME).await.unwrap();
        host.request_name(ipam::NAME).await.unwrap();
        let vmd = bus.vmd_of(&programs.join("vmd"), &config);
        vmd.says("STATUS=booting", LONG).await;
        Some(Self {
            client: bus.connect().await,
            sockets: folder.join("sockets"),
            programs,
            _host: host,
            vmd,
            _bus: bus,
        })
    }

    /// `vmd --reload`, as systemd runs it: whether it was done, and what it said.
    async fn reload(&self) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmd"));
        command.args(["web", "--reload", "--socket-dir"]);
        command.arg(&self.sockets);
        let output = tokio::process::Command::from(command).output();
        let output = timeout(LONG, output).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    }

    async fn reloaded(&self) {
        let (done, said) = self.reload().await;
        assert!(done, "{said}");
    }

    /// The VM on the bus, as another sees it.
    async fn on_the_bus(&self) -> vm::VmProxy<'static> {
        let proxy = vm::VmProxy::builder(&self.client)
            .destination(vm::bus_name("web"))
            .cache_properties(CacheProperties::No);
        proxy.build().await.unwrap()
    }

    async fn agent(&self) -> FakeAgent {
        let vsock = self.vmd.run_dir.join("web/vsock");
        FakeAgent::on(vmd::agent::socket(&vsock)).await
    }

    async fn face(&self) -> VmServiceClient<Channel> {
        client(self.sockets.join("web/vmd.sock")).await
    }

    async fn exec(&self, first: exec_request::Message) -> Program {
        let (requests, stream) = mpsc::channel(16);
        say(&requests, first).await;
        let mut face = self.face().await;
        let answers = face.exec(ReceiverStream::new(stream));
        let answers = timeout(LONG, answers).await.unwrap().unwrap().into_inner();
        Program { requests, answers }
    }

    async fn console(&self) -> Console {
        let (requests, stream) = mpsc::channel(16);
        let open = ConsoleOpen {
            write: true,
            scrollback_bytes: 1024,
            ..ConsoleOpen::default()
        };
        Console::say(&requests, console_request::Message::Open(open)).await;
        let mut face = self.face().await;
        let answers = face.console(ReceiverStream::new(stream));
        let answers = timeout(LONG, answers).await.unwrap().unwrap().into_inner();
        Console { requests, answers }
    }

    /// An agent whose workload is ready.
    async fn ready(&self) -> (FakeAgent, Vec<u8>) {
        let mut agent = self.agent().await;
        let token = agent.hello("boot-1").await.unwrap().token;
        agent.started(42).await;
        agent.ready().await;
        self.vmd.says("READY=1", LONG).await;
        (agent, token)
    }
}

async fn say(requests: &mpsc::Sender<ExecRequest>, message: exec_request::Message) {
    let message = Some(message);
    requests.send(ExecRequest { message }).await.unwrap();
}

/// A client of a program in the guest.
struct Program {
    requests: mpsc::Sender<ExecRequest>,
    answers: Streaming<ExecResponse>,
}

impl Program {
    async fn input(&self, text: &str) {
        say(
            &self.requests,
            exec_request::Message::Stdin(text.as_bytes().to_vec()),
        )
        .await;
    }

    async fn hears(&mut self) -> exec_response::Message {
        let answer = timeout(LONG, self.answers.message()).await.unwrap();
        answer.unwrap().unwrap().message.unwrap()
    }

    async fn repeats(&mut self, text: &str) {
        self.input(text).await;
        let expected = exec_response::Message::Stdout(text.as_bytes().to_vec());
        assert_eq!(self.hears().await, expected);
    }

    async fn started(&mut self) -> String {
        match self.hears().await {
            exec_response::Message::Started(started) => started.id,
            other => panic!("{other:?}"),
        }
    }
}

/// A client of the console.
struct Console {
    requests: mpsc::Sender<ConsoleRequest>,
    answers: Streaming<ConsoleResponse>,
}

impl Console {
    async fn say(requests: &mpsc::Sender<ConsoleRequest>, message: console_request::Message) {
        let message = Some(message);
        requests.send(ConsoleRequest { message }).await.unwrap();
    }

    async fn input(&self, text: &str) {
        let input = console_request::Message::Input(text.as_bytes().to_vec());
        Self::say(&self.requests, input).await;
    }

    async fn shows(&mut self, text: &str) {
        let mut shown = String::new();
        let show = async {
            while !shown.contains(text) {
                let answer = self.answers.message().await.unwrap().unwrap();
                if let Some(console_response::Message::Output(bytes)) = answer.message {
                    shown.push_str(&String::from_utf8_lossy(&bytes));
                }
            }
        };
        assert!(timeout(LONG, show).await.is_ok(), "no {text} in {shown}");
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

#[tokio::test]
async fn all_that_a_vm_has_goes_on() {
    let Some(mut site) = Site::start().await else {
        return;
    };
    let bus = site.on_the_bus().await;
    let (vmm, owner) = (bus.vmm_pid().await.unwrap(), owner(&site).await);
    let watching = vm::VmProxy::builder(&site.client).destination(vm::bus_name("web"));
    let watching = watching.build().await.unwrap();
    let mut generations = watching.receive_generation_changed().await;
    // What it is now is told first.
    let told = timeout(LONG, generations.next()).await.unwrap().unwrap();
    assert_eq!(told.get().await.unwrap(), 1);
    assert!(is_alive(vmm));
    // While the guest boots: nobody said hello yet.
    site.reloaded().await;
    let told = timeout(LONG, generations.next()).await.unwrap().unwrap();
    assert_eq!(told.get().await.unwrap(), 2);

    let (_agent, token) = site.ready().await;
    let started = ExecStart {
        command: vec!["echo".to_owned()],
        stdin: true,
        ..ExecStart::default()
    };
    let mut program = site.exec(exec_request::Message::Start(started)).await;
    let id = program.started().await;
    program.repeats("before").await;
    let mut console = site.console().await;
    console.shows("the guest begins").await;
    console.input("one\n").await;
    console.shows("heard one").await;

    for generation in 3..=5 {
        site.reloaded().await;
        assert_eq!(bus.generation().await.unwrap(), generation);
        // Its client is told to come back, and how much of its input was taken.
        match program.hears().await {
            exec_response::Message::Moved(moved) => assert!(moved.stdin_bytes > 0),
            other => panic!("{other:?}"),
        }
        let attach = ExecAttach { id: id.clone() };
        program = site.exec(exec_request::Message::Attach(attach)).await;
        assert_eq!(program.started().await, id);
        program.repeats("after").await;
    }

    assert_eq!(bus.vmm_pid().await.unwrap(), vmm);
    assert!(is_alive(vmm) && site.vmd.vmd.try_wait().unwrap().is_none());
    assert_eq!(owner, self::owner(&site).await);
    assert_eq!(bus.phase().await.unwrap(), "running");
    assert_eq!(bus.workload_pid().await.unwrap(), 42);
    // The agent is who knows the token of its first hello.
    let mut agent = site.agent().await;
    agent.hello_as("boot-1", &[7; 32]).await.unwrap_err();
    agent.hello_as("boot-1", &token).await.unwrap();
    agent.started(43).await;
    let mut console = site.console().await;
    console.shows("heard one").await;
    console.input("two\n").await;
    console.shows("heard two").await;
    say(
        &program.requests,
        exec_request::Message::StdinEnd(StdinEnd {}),
    )
    .await;
    match program.hears().await {
        exec_response::Message::Exited(exited) => assert_eq!(exited.code, 3),
        other => panic!("{other:?}"),
    }

    // The VMM's end and its cause are seen by who did not start it.
    console.input("off\n").await;
    site.vmd.says("the guest powered off", LONG).await;
    let run_dir = site.vmd.run_dir.clone();
    let (status, log) = site.vmd.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("a new vmd took over"), "{log}");
    assert_eq!(fs::read_dir(run_dir).unwrap().count(), 0);
}

async fn owner(site: &Site) -> String {
    let names = zbus::fdo::DBusProxy::new(&site.client).await.unwrap();
    let name = vm::bus_name("web");
    let owner = names.get_name_owner(name.as_str().try_into().unwrap());
    owner.await.unwrap().to_string()
}

#[tokio::test]
async fn a_paused_guest_stays_paused_and_a_stop_stops_it() {
    let Some(site) = Site::start().await else {
        return;
    };
    let (mut agent, _) = site.ready().await;
    let bus = site.on_the_bus().await;
    let vmm = bus.vmm_pid().await.unwrap();
    let mut face = site.face().await;
    face.pause(PauseRequest {}).await.unwrap();
    site.reloaded().await;
    assert!(bus.paused().await.unwrap());
    let mut face = site.face().await;
    face.resume(ResumeRequest {}).await.unwrap();
    assert!(!bus.paused().await.unwrap());
    assert!(agent.hello("boot-1").await.is_err(), "its vmd is gone");

    let pid = i32::try_from(site.vmd.vmd.id()).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    site.vmd.says("STOPPING=1", LONG).await;
    let (done, said) = site.reload().await;
    assert!(!done && said.contains("it is being stopped"), "{said}");
    // Nobody in the guest answers: it is killed in the end.
    let (_, log) = site.vmd.end();
    assert!(log.contains("killed"), "{log}");
    assert!(!is_alive(vmm));
}

#[tokio::test]
async fn a_binary_that_does_not_take_over_changes_nothing() {
    let Some(mut site) = Site::start().await else {
        return;
    };
    let (mut agent, _) = site.ready().await;
    let started = ExecStart {
        command: vec!["echo".to_owned()],
        stdin: true,
        ..ExecStart::default()
    };
    let mut program = site.exec(exec_request::Message::Start(started)).await;
    program.started().await;
    let vmd = site.programs.join("vmd");
    let wrong = [
        ("#!/bin/sh\necho another time >&2; exit 1\n", "another time"),
        ("no program", "cannot run the new"),
        // It reads what it does not go on with.
        (
            "#!/bin/sh\n[ $2 = --check-state ] && { rm $0; exit 0; }\n",
            "cannot execute",
        ),
    ];
    for (text, expected) in wrong {
        self::program(&vmd, text);
        let (done, said) = site.reload().await;
        assert!(!done && said.contains(expected), "{said}");
        assert!(said.contains("goes on as it was"), "{said}");
        if expected != "cannot execute" {
            // Its client did not notice.
            program.repeats("still here").await;
        }
    }
    // That one went far: its client was told to come back, and can.
    let id = match program.hears().await {
        exec_response::Message::Moved(_) => "exec-1".to_owned(),
        other => panic!("{other:?}"),
    };
    let attach = ExecAttach { id };
    let mut program = site.exec(exec_request::Message::Attach(attach)).await;
    program.started().await;
    program.repeats("again").await;
    agent.started(44).await;
    let bus = site.on_the_bus().await;
    assert_eq!(bus.generation().await.unwrap(), 1);
    let mut console = site.console().await;
    console.input("three\n").await;
    console.shows("heard three").await;
    assert!(site.vmd.vmd.try_wait().unwrap().is_none());

    fs::copy(env!("CARGO_BIN_EXE_vmd"), &vmd).unwrap();
    fs::set_permissions(&vmd, fs::Permissions::from_mode(0o755)).unwrap();
    site.reloaded().await;
    assert_eq!(bus.generation().await.unwrap(), 2);
    let _ = site.vmd.vmd.kill();
}
