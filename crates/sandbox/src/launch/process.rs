use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use fault::Kind;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use super::Sweeper;
use super::spec::process_spec;
use crate::confinement::Level;
use crate::io::{self as streams, End, Input, Output};
use crate::link::{self, Failure, Report, Request};
use crate::names::HostsFile;
use crate::network::Held;
use crate::{Exit, Io, Process, Running, Sample, SandboxError, Started};

/// The socket to one container's monitor, shared by the handles of its processes.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: AsyncFd<OwnedFd>,
    slots: Mutex<HashMap<u32, Slot>>,
    next: AtomicU32,
    warned: Arc<AtomicBool>,
    /// The first process has ended, and so have all.
    over: AtomicBool,
    /// Kills everything in the container, whatever has become of the monitor.
    leader: Mutex<Option<OwnedFd>>,
    sweeper: Sweeper,
}

/// Who waits for news of a process.
#[derive(Debug)]
struct Slot {
    started: watch::Sender<bool>,
    terminal: Option<oneshot::Sender<OwnedFd>>,
    ended: Option<oneshot::Sender<Outcome>>,
    stubs: Arc<Mutex<Vec<PathBuf>>>,
}

impl Slot {
    fn end(self, outcome: Outcome) {
        self.started.send_replace(true);
        if let Some(ended) = self.ended {
            let _ = ended.send(outcome);
        }
    }
}

/// What a container has as long as it lives.
pub(crate) struct Kept {
    _hosts: HostsFile,
    network: Option<Held>,
    _level: Option<Level>,
}

impl Kept {
    pub fn new(hosts: HostsFile, network: Option<Held>, level: Option<Level>) -> Self {
        Self { _hosts: hosts, network, _level: level }
    }

    fn network(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(Held::fd)
    }
}

type ResultComes = Pin<Box<dyn Future<Output = Result<Exit, SandboxError>> + Send>>;
type EndComes = oneshot::Receiver<Outcome>;

impl Connection {
    pub fn open(socket: OwnedFd, sweeper: Sweeper, warned: Arc<AtomicBool>) -> Result<Arc<Self>, SandboxError> {
        let socket = crate::sys::watch(socket).map_err(SandboxError::io("watch a socket"))?;
        let connection = Arc::new(Self {
            socket,
            slots: Mutex::default(),
            next: AtomicU32::new(0),
            warned,
            over: AtomicBool::new(false),
            leader: Mutex::default(),
            sweeper,
        });
        task::spawn("container", Arc::clone(&connection).follow());
        Ok(connection)
    }

    pub fn start(self: Arc<Self>, memory: OwnedFd, tty: bool, io: Io, kept: Kept) -> Result<Box<dyn Running>, SandboxError> {
        let process = self.begin(|_| Request::Start, &memory, tty, io, Some(kept))?;
        Ok(Box::new(Whole { process }))
    }

    fn begin(
        self: &Arc<Self>,
        request: impl FnOnce(u32) -> Request,
        memory: &OwnedFd,
        tty: bool,
        io: Io,
        kept: Option<Kept>,
    ) -> Result<Handle, SandboxError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (started, starting) = watch::channel(false);
        let (terminal, terminal_comes) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let stubs = Arc::new(Mutex::new(Vec::new()));
        let slot = Slot { started, terminal: Some(terminal), ended: Some(ended), stubs: Arc::clone(&stubs) };
        let window = Arc::new(Mutex::new(Window::default()));
        let wires = Wires::lay(tty, io, Arc::clone(&window), terminal_comes).map_err(SandboxError::io("create pipes"))?;
        self.slots().insert(number, slot);
        let mut fds = vec![memory.as_fd()];
        fds.extend(kept.as_ref().and_then(Kept::network));
        fds.extend(wires.theirs.iter().map(|fd| fd.as_fd()));
        if let Err(error) = self.send(&request(number), &fds) {
            self.slots().remove(&number);
            return Err(error);
        }
        let first = number == 0;
        let result = task::spawn("process", async move {
            let outcome = wires.attend(end, first).await;
            drop(kept);
            outcome.map(|Ended { code, oom_killed, usage }| {
                let stubs = std::mem::take(&mut *stubs.lock().unwrap_or_else(PoisonError::into_inner));
                Exit { code, oom_killed, stubs, usage }
            })
        });
        let result: ResultComes =
            Box::pin(async move { result.join().await.unwrap_or_else(|fault| Err(SandboxError::Helper(fault.to_string()))) });
        Ok(Handle { connection: Arc::clone(self), number, starting, window, result: Mutex::new(Some(result)) })
    }

    fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), SandboxError> {
        link::send(self.socket.get_ref(), request, fds).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => SandboxError::Gone,
            _ => SandboxError::io("reach the container's monitor")(error),
        })
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leader(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes the monitor's reports on until it ends.
    async fn follow(self: Arc<Self>) {
        let mut buffer = Vec::new();
        loop {
            match self.socket.async_io(Interest::READABLE, |fd| link::receive::<Report>(fd, &mut buffer)).await {
                Ok(Some((report, fds))) => self.hear(report, fds),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a sandbox monitor cannot be understood");
                    break;
                }
            }
        }
        if let (Some(leader), false) = (self.leader().take(), self.over.swap(true, Ordering::AcqRel)) {
            let _ = rustix::process::pidfd_send_signal(leader, rustix::process::Signal::KILL);
            self.sweeper.sweep();
        }
        for (_, slot) in self.slots().drain() {
            slot.end(Err(SandboxError::Helper("without a report".to_owned())));
        }
    }

    /// The first report of an end counts.
    fn end(&self, slots: &mut HashMap<u32, Slot>, number: u32, outcome: Outcome) {
        if number == 0 {
            self.over.store(true, Ordering::Release);
        }
        if let Some(slot) = slots.remove(&number) {
            slot.end(outcome);
        }
    }

    fn hear(&self, report: Report, fds: Vec<OwnedFd>) {
        let mut slots = self.slots();
        match report {
            Report::Leader => *self.leader() = fds.into_iter().next(),
            Report::Started { number, stubs } => {
                if let Some(slot) = slots.get_mut(&number) {
                    *slot.stubs.lock().unwrap_or_else(PoisonError::into_inner) = stubs;
                    slot.started.send_replace(true);
                }
            }
            Report::Terminal { number } => {
                let slot = slots.get_mut(&number).and_then(|slot| slot.terminal.take());
                if let (Some(terminal), Some(fd)) = (slot, fds.into_iter().next()) {
                    let _ = terminal.send(fd);
                }
            }
            Report::Failed { number, failure } => {
                self.end(&mut slots, number, Err(into_error(failure)));
            }
            Report::Exited { number, code, oom_killed, usage } => {
                self.end(&mut slots, number, Ok(Ended { code, oom_killed, usage }));
            }
            Report::Warning { message } => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!("{message}");
                }
            }
        }
    }
}

/// What the monitor tells of an end.
#[derive(Debug)]
struct Ended {
    code: i32,
    oom_killed: bool,
    usage: Vec<Sample>,
}

type Outcome = Result<Ended, SandboxError>;

fn into_error(failure: Failure) -> SandboxError {
    if failure.program {
        return SandboxError::Program { message: failure.message };
    }
    let kind = failure.errno.map_or(Kind::Unknown, |errno| Kind::of_io(&io::Error::from_raw_os_error(errno)));
    SandboxError::Setup { message: failure.message, kind }
}

#[derive(Debug, Default)]
struct Window {
    size: Option<(u16, u16)>,
    terminal: Option<End>,
}

impl Window {
    fn apply(&self) -> io::Result<()> {
        let (Some((rows, columns)), Some(terminal)) = (self.size, &self.terminal) else { return Ok(()) };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(terminal.get_ref(), size)?)
    }
}

/// A process's streams.
struct Wires {
    theirs: Vec<OwnedFd>,
    stdin: Option<(End, tokio::sync::mpsc::Receiver<Bytes>)>,
    outputs: Vec<(End, Output)>,
    terminal: Option<TerminalWires>,
}

struct TerminalWires {
    comes: oneshot::Receiver<OwnedFd>,
    stdin: Input,
    stdout: Output,
    window: Arc<Mutex<Window>>,
}

impl Wires {
    fn lay(tty: bool, io: Io, window: Arc<Mutex<Window>>, comes: oneshot::Receiver<OwnedFd>) -> io::Result<Self> {
        let mut wires = Self { theirs: Vec::new(), stdin: None, outputs: Vec::new(), terminal: None };
        if tty {
            wires.terminal = Some(TerminalWires { comes, stdin: io.stdin, stdout: io.stdout, window });
            return Ok(wires);
        }
        match io.stdin {
            Input::Empty => wires.theirs.push(streams::null()?),
            Input::Stream(stream) => {
                let (ours, theirs) = streams::input_pipe()?;
                wires.theirs.push(theirs);
                wires.stdin = Some((ours, stream));
            }
        }
        for output in [io.stdout, io.stderr] {
            if let Output::Discard = output {
                wires.theirs.push(streams::null()?);
                continue;
            }
            let (ours, theirs) = streams::output_pipe()?;
            wires.theirs.push(theirs);
            wires.outputs.push((ours, output));
        }
        Ok(wires)
    }

    /// Moves bytes until the process has ended and all it wrote has been passed on.
    async fn attend(mut self, ended: EndComes, first: bool) -> Outcome {
        // Only the process may hold them now, or there is no end of file.
        self.theirs.clear();
        let mut ended = ended;
        if let Some(terminal) = self.terminal.take() {
            tokio::select! {
                biased;
                fd = terminal.comes => {
                    if let Ok(fd) = fd {
                        let end = streams::end(fd).map_err(SandboxError::io("watch a terminal"))?;
                        let mut window = terminal.window.lock().unwrap_or_else(PoisonError::into_inner);
                        window.terminal = Some(Arc::clone(&end));
                        let _ = window.apply();
                        if let Input::Stream(stream) = terminal.stdin {
                            self.stdin = Some((Arc::clone(&end), stream));
                        }
                        self.outputs.push((end, terminal.stdout));
                    }
                }
                outcome = &mut ended => return outcome.unwrap_or(Err(SandboxError::Gone)),
            }
        }
        let feeder = self.stdin.map(|(end, stream)| task::spawn("stdin", streams::feed(end, stream)));
        let (mut stops, mut pumps) = (Vec::new(), Vec::new());
        for (end, output) in self.outputs {
            let (stop, stopped) = oneshot::channel();
            stops.push(stop);
            pumps.push(task::spawn("output", streams::pump(end, output, stopped)));
        }
        let outcome = ended.await.unwrap_or(Err(SandboxError::Gone));
        if let Some(feeder) = feeder {
            feeder.abort();
        }
        // With the first process all others died, so there is an end of file. Else somebody may still hold our streams.
        if !first {
            for stop in stops.drain(..) {
                let _ = stop.send(());
            }
        }
        let mut last = None;
        for pump in pumps {
            last = pump.join().await.ok();
        }
        match (outcome, last) {
            // As runtimes have it: the reason on stderr, which is the last stream, and exit code 1.
            (Err(SandboxError::Program { message }), output) => {
                if let (Some(mut output), false) = (output, message.is_empty()) {
                    output.put(format!("unable to start container process: {message}\n").into()).await;
                }
                Ok(Ended { code: 1, oom_killed: false, usage: Vec::new() })
            }
            (outcome, _) => outcome,
        }
    }
}

/// One process.
struct Handle {
    connection: Arc<Connection>,
    number: u32,
    starting: watch::Receiver<bool>,
    window: Arc<Mutex<Window>>,
    result: Mutex<Option<ResultComes>>,
}

#[async_trait]
impl Started for Handle {
    async fn started(&self) {
        // The sender goes away only after an end.
        let _ = self.starting.clone().wait_for(|started| *started).await;
    }

    async fn wait(&self) -> Result<Exit, SandboxError> {
        std::future::poll_fn(|context| {
            let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(future) = result.as_mut() else { return std::task::Poll::Ready(Err(SandboxError::Gone)) };
            let outcome = future.as_mut().poll(context);
            if outcome.is_ready() {
                *result = None;
            }
            outcome
        })
        .await
    }

    fn signal(&self, signal: i32) -> Result<(), SandboxError> {
        self.connection.send(&Request::Signal { number: self.number, signal }, &[])
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<(), SandboxError> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.size = Some((rows, columns));
        window.apply().map_err(SandboxError::io("resize a terminal"))
    }
}

/// A container. It goes when this goes.
struct Whole {
    process: Handle,
}

#[async_trait]
impl Started for Whole {
    async fn started(&self) {
        self.process.started().await;
    }

    async fn wait(&self) -> Result<Exit, SandboxError> {
        self.process.wait().await
    }

    fn signal(&self, signal: i32) -> Result<(), SandboxError> {
        self.process.signal(signal)
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<(), SandboxError> {
        self.process.resize(rows, columns)
    }
}

#[async_trait]
impl Running for Whole {
    async fn exec(&self, process: Process, io: Io) -> Result<Box<dyn Started>, SandboxError> {
        // Whether it is insecure the monitor knows.
        let spec = process_spec(&process, false);
        let memory = link::write_memory(&spec, []).map_err(SandboxError::io("describe the process"))?;
        self.started().await;
        if self.process.connection.over.load(Ordering::Acquire) {
            return Err(SandboxError::Gone);
        }
        let handle = self.process.connection.begin(|number| Request::Exec { number }, &memory, process.tty, io, None)?;
        handle.started().await;
        Ok(Box::new(handle))
    }

    fn kill(&self) {
        // If that cannot be said there is nobody left to kill.
        let _ = self.process.connection.send(&Request::Kill, &[]);
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(self.process.connection.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}
