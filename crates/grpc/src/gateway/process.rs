//! `ExecProcess`: several processes on one stream, each with its own input, outputs and end.
//!
//! Order per process: Started, then output, an end mark for each output, the exit (which may come before the last output), Done. Started is sent before the
//! process runs: clients take messages of all their processes from one place, and one that waits for a second process before it takes the first one's
//! output must not have to wait behind that output. What goes wrong with the start is told by the exit.
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_core::Stream;
use job::{Process, ProcessRequest};
use proto::moby::buildkit::v1::frontend as pb;
use proto::moby::buildkit::v1::frontend::exec_message::Input;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wire::status;

use super::Drive;

type Answers = mpsc::Sender<Result<pb::ExecMessage, Status>>;

/// What stands for an exit code that nobody knows.
const UNKNOWN_EXIT: u32 = 255;
const KILL: i32 = 9;
/// Chunks of input or output that wait to be taken.
const QUEUE: usize = 16;

pub fn serve(
    drive: Arc<Drive>,
    incoming: Streaming<pb::ExecMessage>,
) -> Pin<Box<dyn Stream<Item = Result<pb::ExecMessage, Status>> + Send>> {
    let (answers, stream) = mpsc::channel(QUEUE);
    task::spawn("gateway processes", async move {
        let mut processes = Processes { drive, answers: answers.clone(), running: HashMap::new(), starts: HashMap::new() };
        let outcome = tokio::select! {
            outcome = processes.follow(incoming) => outcome,
            () = answers.closed() => Ok(()),
        };
        processes.kill_all().await;
        if let Err(status) = outcome {
            let _ = answers.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

struct Processes {
    drive: Arc<Drive>,
    answers: Answers,
    running: HashMap<String, Running>,
    /// The last start in each container. The next one waits for it: the first process makes the container.
    starts: HashMap<String, oneshot::Receiver<()>>,
}

struct Running {
    /// Set once the process runs; the sender is dropped if it never does.
    process: watch::Receiver<Option<Arc<dyn Process>>>,
    stdin: Option<mpsc::Sender<Bytes>>,
}

impl Running {
    /// The process, waiting for its start. `None` if that failed.
    async fn process(&self) -> Option<Arc<dyn Process>> {
        self.process.clone().wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl Processes {
    async fn follow(&mut self, mut incoming: Streaming<pb::ExecMessage>) -> Result<(), Status> {
        while let Some(message) = incoming.next().await {
            let pb::ExecMessage { process_id, input } = message?;
            if process_id.is_empty() {
                return Err(Status::invalid_argument("ProcessID required"));
            }
            match input {
                Some(Input::Init(init)) => self.start(process_id, init).await?,
                Some(Input::File(file)) => self.write(&process_id, file).await?,
                Some(Input::Resize(size)) => {
                    if let Some(process) = self.find(&process_id)?.process().await {
                        log_refusal("resize", &process_id, process.resize(size.rows, size.cols).await);
                    }
                }
                Some(Input::Signal(signal)) => {
                    let running = self.find(&process_id)?;
                    let number =
                        signal_number(&signal.name).ok_or_else(|| Status::invalid_argument(format!("Unknown signal {}", signal.name)))?;
                    if let Some(process) = running.process().await {
                        log_refusal("signal", &process_id, process.signal(number).await);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn start(&mut self, id: String, init: pb::InitMessage) -> Result<(), Status> {
        if self.running.contains_key(&id) {
            return Err(Status::already_exists(format!("Process {id} already exists")));
        }
        let missing = || Status::not_found(format!("container {:?} previously released or not created", init.container_id));
        let container = self.drive.container(&init.container_id).ok_or_else(missing)?;
        let wanted = |fd: u32| init.fds.contains(&fd).then(|| mpsc::channel::<Bytes>(QUEUE)).unzip();
        let ((stdin, input), (out_sender, stdout), (err_sender, stderr)) = (wanted(0), wanted(1), wanted(2));
        // Secrets are fetched while it starts, and a client learns of a missing one there.
        let told_late = !init.secretenv.is_empty();
        let request = ProcessRequest {
            meta: llb::parts::meta(init.meta.unwrap_or_default()),
            tty: init.tty,
            security: llb::SecurityMode::Sandbox,
            secret_env: init.secretenv.into_iter().map(|s| llb::SecretEnv { id: s.id, name: s.name, optional: s.optional }).collect(),
            stdin: input,
            stdout: out_sender,
            stderr: err_sender,
        };
        let security = match proto::pb::SecurityMode::try_from(init.security) {
            Ok(proto::pb::SecurityMode::Sandbox) => Ok(llb::SecurityMode::Sandbox),
            Ok(proto::pb::SecurityMode::Insecure) => Ok(llb::SecurityMode::Insecure),
            Err(_) => Err(fault::Fault::invalid(format!("invalid security mode {}", init.security))),
        };
        let (starting, started) = oneshot::channel();
        let before = self.starts.insert(init.container_id, started);
        let start = async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            let process = container.start(ProcessRequest { security: security?, ..request }).await;
            drop(starting);
            process
        };
        let (ready, process) = watch::channel(None);
        self.running.insert(id.clone(), Running { process, stdin });
        let answers = self.answers.clone();
        if told_late {
            let process = start.await.map_err(|fault| status::of_build(&fault))?;
            answer(&answers, &id, Input::Started(pb::StartedMessage {})).await;
            task::spawn("gateway process", attend(answers, id, async { Ok(process) }, ready, stdout, stderr));
        } else {
            answer(&answers, &id, Input::Started(pb::StartedMessage {})).await;
            task::spawn("gateway process", attend(answers, id, start, ready, stdout, stderr));
        }
        Ok(())
    }

    async fn write(&mut self, id: &str, file: pb::FdMessage) -> Result<(), Status> {
        let running = self.find(id)?;
        let Some(stdin) = running.stdin.as_ref().filter(|_| file.fd == 0) else {
            return Err(Status::out_of_range(format!("fd {} unavailable to write", file.fd)));
        };
        let taken = file.data.is_empty() || stdin.send(file.data.into()).await.is_ok();
        if file.eof || !taken {
            running.stdin = None;
        }
        Ok(())
    }

    fn find(&mut self, id: &str) -> Result<&mut Running, Status> {
        self.running.get_mut(id).ok_or_else(|| Status::not_found(format!("IO for process {id:?} not found")))
    }

    /// The driver is gone or has nothing more to say.
    async fn kill_all(&mut self) {
        for (id, running) in self.running.drain() {
            if let Some(process) = running.process().await {
                log_refusal("kill", &id, process.signal(KILL).await);
            }
        }
    }
}

/// Sends what one process says, from its start to its end.
async fn attend(
    answers: Answers,
    id: String,
    start: impl Future<Output = fault::Result<Arc<dyn Process>>>,
    ready: watch::Sender<Option<Arc<dyn Process>>>,
    stdout: Option<mpsc::Receiver<Bytes>>,
    stderr: Option<mpsc::Receiver<Bytes>>,
) {
    let exit = async {
        let exit = match start.await {
            Ok(process) => {
                ready.send_replace(Some(process.clone()));
                process.wait().await
            }
            Err(fault) => {
                drop(ready);
                Err(fault)
            }
        };
        answer(&answers, &id, Input::Exit(exit_message(exit))).await;
    };
    tokio::join!(exit, forward(&answers, &id, 1, stdout), forward(&answers, &id, 2, stderr));
    answer(&answers, &id, Input::Done(pb::DoneMessage {})).await;
}

/// A process that is gone already refuses, which is fine.
fn log_refusal(what: &str, id: &str, outcome: fault::Result<()>) {
    if let Err(fault) = outcome {
        tracing::debug!(what, process = id, %fault, "a gateway process did not take it");
    }
}

async fn answer(answers: &Answers, id: &str, input: Input) {
    // If nobody listens any more the stream's own task ends the processes.
    let _ = answers.send(Ok(pb::ExecMessage { process_id: id.to_owned(), input: Some(input) })).await;
}

async fn forward(answers: &Answers, id: &str, fd: u32, output: Option<mpsc::Receiver<Bytes>>) {
    let Some(mut output) = output else { return };
    while let Some(data) = output.recv().await {
        answer(answers, id, Input::File(pb::FdMessage { fd, eof: false, data: data.into() })).await;
    }
    answer(answers, id, Input::File(pb::FdMessage { fd, eof: true, data: Vec::new() })).await;
}

fn exit_message(exit: fault::Result<i32>) -> pb::ExitMessage {
    match exit {
        Ok(0) => pb::ExitMessage { code: 0, error: None },
        Ok(code) => {
            let error = fault::Fault::new(fault::Kind::Unknown, format!("exit code: {code}"));
            pb::ExitMessage { code: code as u32, error: Some(status::into_message(&error)) }
        }
        Err(fault) => pb::ExitMessage { code: UNKNOWN_EXIT, error: Some(status::into_message(&fault)) },
    }
}

const REAL_TIME_FIRST: i32 = 34;
const REAL_TIME_LAST: i32 = 64;

/// Linux numbers by their names without `SIG`.
fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT",
        "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let alias = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        "UNUSED" => "SYS",
        other => other,
    };
    let from = |base: i32, rest: &str, sign: i32| {
        rest.parse::<i32>().ok().map(|n| base + sign * n).filter(|n| (REAL_TIME_FIRST..=REAL_TIME_LAST).contains(n))
    };
    if let Some(at) = NAMES.iter().position(|known| *known == alias) {
        return Some(at as i32 + 1);
    }
    match alias {
        "RTMIN" => Some(REAL_TIME_FIRST),
        "RTMAX" => Some(REAL_TIME_LAST),
        other => match (other.strip_prefix("RTMIN+"), other.strip_prefix("RTMAX-")) {
            (Some(rest), _) => from(REAL_TIME_FIRST, rest, 1),
            (_, Some(rest)) => from(REAL_TIME_LAST, rest, -1),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name() {
        let numbers: Vec<_> = ["TERM", "KILL", "SYS", "CLD", "RTMIN", "RTMIN+15", "RTMAX-14"].map(|n| signal_number(n).unwrap()).into();
        assert_eq!(numbers, [15, 9, 31, 17, 34, 49, 50]);
        assert!(["SIGTERM", "", "RTMIN+99", "NOPE"].iter().all(|name| signal_number(name).is_none()));
    }
}
