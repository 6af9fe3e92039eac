//! A stand-in for a VM's supervisor, with a guest that does little: it is the program's command that says what.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use volant_proto::vm::v1::{
    self as wire, connect_request::Message as ConnectAsk, connect_response::Message as ConnectTold,
    console_request::Message as ConsoleAsk, console_response::Message as ConsoleTold,
    exec_request::Message as Ask, exec_response::Message as Told, pack_response::Message as Packed,
    unpack_request::Message as Part, vm_service_server::VmService,
};

/// What it was asked, and how it is to be. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct FakeVmd(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub struct State {
    pub calls: Vec<String>,
    /// Programs whose client went away, or which ended.
    pub ended: usize,
    /// What a program's standard input was, over all supervisors.
    pub stdin: Vec<u8>,
    pub unpacked: Vec<u8>,
    /// The archive came to its end.
    pub complete: bool,
    /// Messages of output that were taken off it.
    pub given: usize,
    pub cannot_resize: bool,
    pub agent_away: bool,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl FakeVmd {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn asked(&self, call: impl Into<String>) -> Result<(), Status> {
        let mut state = self.lock();
        state.calls.push(call.into());
        match state.agent_away {
            true => Err(Status::unavailable("the agent cannot be reached")),
            false => Ok(()),
        }
    }
}

fn exited(code: u32, signal: u32) -> Told {
    Told::Exited(wire::ExecExited {
        code,
        signal,
        error: String::new(),
    })
}

/// Counts a program's end, however it comes.
struct Running(FakeVmd);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().ended += 1;
    }
}

impl FakeVmd {
    /// Carries a program out; what it says goes to `told`.
    async fn program(
        self,
        command: Vec<String>,
        mut asks: Streaming<wire::ExecRequest>,
        told: mpsc::Sender<Result<wire::ExecResponse, Status>>,
    ) {
        let _running = Running(self.clone());
        let say = async |message| {
            let message = Some(message);
            told.send(Ok(wire::ExecResponse { message })).await.is_ok()
        };
        let started = wire::ExecStarted {
            id: "one".to_owned(),
            pid: 42,
        };
        say(Told::Started(started)).await;
        match command.first().map(String::as_str) {
            Some("flood") => {
                while say(Told::Stdout(vec![b'x'; 64 * 1024])).await {
                    self.lock().given += 1;
                }
                return;
            }
            Some("both") => {
                say(Told::Stdout(b"out".to_vec())).await;
                say(Told::Stderr(b"err".to_vec())).await;
                say(exited(7, 0)).await;
                return;
            }
            _ => {}
        }
        let mut taken = 0;
        loop {
            // A client that leaves breaks the stream off, or takes no more.
            let message = tokio::select! {
                message = asks.message() => message,
                () = told.closed() => return,
            };
            match message {
                Ok(Some(wire::ExecRequest { message })) => match message.unwrap() {
                    Ask::Stdin(data) => {
                        taken += data.len();
                        self.lock().stdin.extend(&data);
                        if command.first().is_some_and(|word| word == "moves") && taken >= 6 {
                            // It took four of them; who comes next gets the rest again.
                            self.lock().stdin.truncate(4);
                            say(Told::Moved(wire::ExecMoved { stdin_bytes: 4 })).await;
                            return;
                        }
                        say(Told::Stdout(data)).await;
                    }
                    Ask::StdinEnd(_) => {
                        say(exited(0, 0)).await;
                        return;
                    }
                    Ask::Signal(signal) => {
                        say(exited(128 + signal, signal)).await;
                        return;
                    }
                    Ask::Resize(size) => {
                        let text = format!("{}x{}", size.rows, size.columns);
                        say(Told::Stdout(text.into_bytes())).await;
                    }
                    Ask::Start(_) | Ask::Attach(_) => panic!("it began already"),
                },
                Ok(None) | Err(_) => return,
            }
        }
    }
}

#[tonic::async_trait]
impl VmService for FakeVmd {
    type ExecStream = Answers<wire::ExecResponse>;
    type PackStream = Answers<wire::PackResponse>;
    type ConnectStream = Answers<wire::ConnectResponse>;
    type ConsoleStream = Answers<wire::ConsoleResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<wire::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let mut asks = request.into_inner();
        let first = asks.message().await?.and_then(|first| first.message);
        let command = match first {
            Some(Ask::Start(start)) => {
                self.asked(format!("Exec {:?} as '{}'", start.command, start.user))?;
                start.command
            }
            Some(Ask::Attach(attach)) => {
                self.asked(format!("Attach {}", attach.id))?;
                vec!["cat".to_owned()]
            }
            _ => return Err(Status::invalid_argument("no start")),
        };
        if command.first().is_some_and(|word| word == "missing") {
            return Err(Status::not_found("there is no program 'missing'"));
        }
        let (told, answers) = mpsc::channel(1);
        tokio::spawn(self.clone().program(command, asks, told));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn pack(
        &self,
        request: Request<wire::PackRequest>,
    ) -> Result<Response<Self::PackStream>, Status> {
        let path = request.into_inner().path;
        self.asked(format!("Pack {path}"))?;
        if path == "/missing" {
            return Err(Status::not_found("there is no /missing"));
        }
        let about = wire::PackedPath {
            is_directory: false,
            size: 4,
        };
        let answer = |message| wire::PackResponse {
            message: Some(message),
        };
        let mut answers = vec![
            Ok(answer(Packed::Path(about))),
            Ok(answer(Packed::Chunk(b"ta".to_vec()))),
        ];
        answers.push(match path.as_str() {
            "/breaks" => Err(Status::unavailable("the guest is gone")),
            _ => Ok(answer(Packed::Chunk(b"r!".to_vec()))),
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn unpack(
        &self,
        request: Request<Streaming<wire::UnpackRequest>>,
    ) -> Result<Response<wire::UnpackResponse>, Status> {
        let _running = Running(self.clone());
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|part| part.message);
        let Some(Part::Target(target)) = first else {
            return Err(Status::invalid_argument("no target"));
        };
        self.asked(format!("Unpack {}", target.path))?;
        if target.path == "/a-file" {
            return Err(Status::failed_precondition("/a-file is no folder"));
        }
        while let Some(part) = parts.message().await? {
            if let Some(Part::Chunk(chunk)) = part.message {
                assert!(chunk.len() <= 64 * 1024);
                self.lock().unpacked.extend(chunk);
            }
        }
        self.lock().complete = true;
        Ok(Response::new(wire::UnpackResponse { entries: 3 }))
    }

    /// Gives back what it gets, and ends when the client's side ends.
    async fn connect(
        &self,
        request: Request<Streaming<wire::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let mut asks = request.into_inner();
        let first = asks.message().await?.and_then(|first| first.message);
        let Some(ConnectAsk::Target(target)) = first else {
            return Err(Status::invalid_argument("no target"));
        };
        self.asked(format!("Connect {}:{}", target.host, target.port))?;
        if target.port == 1 {
            return Err(Status::failed_precondition("connection refused"));
        }
        let answer = |message| wire::ConnectResponse {
            message: Some(message),
        };
        let connected = tokio_stream::once(Ok(answer(ConnectTold::Connected(wire::Connected {}))));
        let echo = asks.map(move |ask| match ask?.message {
            Some(ConnectAsk::Data(data)) => Ok(answer(ConnectTold::Data(data))),
            _ => Err(Status::invalid_argument("no data")),
        });
        let end = tokio_stream::once(Ok(answer(ConnectTold::Data(Vec::new()))));
        Ok(Response::new(Box::pin(connected.chain(echo).chain(end))))
    }

    async fn console(
        &self,
        request: Request<Streaming<wire::ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let mut asks = request.into_inner();
        let first = asks.message().await?.and_then(|first| first.message);
        let Some(ConsoleAsk::Open(open)) = first else {
            return Err(Status::invalid_argument("no open"));
        };
        self.asked(format!("Console {} {}", open.scrollback_bytes, open.write))?;
        if open.write && !open.steal {
            return Err(Status::failed_precondition("somebody writes already"));
        }
        let answer = |message| {
            Ok(wire::ConsoleResponse {
                message: Some(message),
            })
        };
        let said = tokio_stream::iter([
            answer(ConsoleTold::Output(vec![b'x'; 100 * 1024])),
            answer(ConsoleTold::LostBytes(5)),
        ]);
        if open.no_follow {
            return Ok(Response::new(Box::pin(said)));
        }
        let echo = asks.map(move |ask| match ask?.message {
            Some(ConsoleAsk::Input(input)) => answer(ConsoleTold::Output(input)),
            _ => answer(ConsoleTold::Stolen(wire::ConsoleStolen {})),
        });
        Ok(Response::new(Box::pin(said.chain(echo))))
    }

    async fn get_stats(
        &self,
        request: Request<wire::GetStatsRequest>,
    ) -> Result<Response<wire::GetStatsResponse>, Status> {
        self.asked(format!("GetStats {}", request.into_inner().processes))?;
        Ok(Response::new(wire::GetStatsResponse {
            cpus: 2,
            memory_total_kib: 1000,
            ..wire::GetStatsResponse::default()
        }))
    }

    async fn pause(
        &self,
        _: Request<wire::PauseRequest>,
    ) -> Result<Response<wire::PauseResponse>, Status> {
        self.asked("Pause")?;
        Ok(Response::new(wire::PauseResponse {}))
    }

    async fn resume(
        &self,
        _: Request<wire::ResumeRequest>,
    ) -> Result<Response<wire::ResumeResponse>, Status> {
        self.asked("Resume")?;
        Ok(Response::new(wire::ResumeResponse {}))
    }

    async fn resize(
        &self,
        request: Request<wire::ResizeRequest>,
    ) -> Result<Response<wire::ResizeResponse>, Status> {
        let wire::ResizeRequest {
            cpu_cores,
            memory_mb,
        } = request.into_inner();
        self.asked(format!("Resize {cpu_cores} {memory_mb}"))?;
        match self.lock().cannot_resize {
            true => Err(Status::unimplemented("qemu cannot be resized")),
            false => Ok(Response::new(wire::ResizeResponse {})),
        }
    }
}
