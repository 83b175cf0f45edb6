//! Shows a build's progress on standard error.
mod model;
mod plain;
mod raw;
mod tty;

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use proto::moby::buildkit::v1 as pb;
use tokio::sync::mpsc;

use model::Model;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Tty { color: bool },
    RawJson,
    Quiet,
}

/// What the environment says about showing progress.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// `BUILDKIT_PROGRESS`; counts where the command line says `auto`.
    pub progress: Option<String>,
    /// `NO_COLOR` is set.
    pub no_color: bool,
}

/// Time between two pictures.
const RATE: Duration = Duration::from_millis(100);

pub fn choose(flag: &str, wishes: &Wishes) -> Result<Kind, String> {
    let wanted = match flag {
        "" | "auto" => wishes.progress.as_deref().unwrap_or("auto"),
        flag => flag,
    };
    let tty = Kind::Tty { color: !wishes.no_color };
    match wanted {
        "" | "auto" => Ok(if io::stderr().is_terminal() { tty } else { Kind::Plain }),
        "tty" if io::stderr().is_terminal() => Ok(tty),
        "tty" => Err("failed to get console: standard error is not a terminal".into()),
        "plain" => Ok(Kind::Plain),
        "rawjson" => Ok(Kind::RawJson),
        "quiet" | "none" => Ok(Kind::Quiet),
        other => Err(format!("invalid progress mode {other}")),
    }
}

/// Shows what comes until the channel closes. Every part is also handed to `tee`, if there is one.
pub async fn show(kind: Kind, mut parts: mpsc::Receiver<pb::StatusResponse>, mut tee: Option<Box<dyn Write + Send>>) -> io::Result<()> {
    let mut screen =
        Screen { kind, model: Model::default(), plain: plain::Plain::default(), tty: tty::Tty::new(kind == Kind::Tty { color: true }) };
    let mut tick = tokio::time::interval(RATE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut news = false;
    loop {
        tokio::select! {
            part = parts.recv() => match part {
                Some(part) => {
                    if let Some(tee) = &mut tee {
                        writeln!(tee, "{}", raw::line(&part))?;
                    }
                    news = true;
                    screen.take(part)?;
                }
                None => break,
            },
            _ = tick.tick() => {
                if news || matches!(kind, Kind::Tty { .. }) {
                    news = false;
                    screen.draw(false)?;
                }
            }
        }
    }
    screen.draw(true)?;
    screen.failures()
}

struct Screen {
    kind: Kind,
    model: Model,
    plain: plain::Plain,
    tty: tty::Tty,
}

impl Screen {
    fn take(&mut self, part: pb::StatusResponse) -> io::Result<()> {
        if self.kind == Kind::RawJson {
            return writeln!(io::stderr().lock(), "{}", raw::line(&part));
        }
        self.model.apply(part);
        Ok(())
    }

    fn draw(&mut self, end: bool) -> io::Result<()> {
        // Standard error has no buffer of its own: a line would be three writes.
        let mut out = io::BufWriter::with_capacity(64 << 10, io::stderr().lock());
        match self.kind {
            Kind::Plain => self.plain.print(&mut self.model, &mut out, end),
            Kind::Tty { .. } => {
                let size = rustix::termios::tcgetwinsize(io::stderr()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
                let size = size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()));
                self.tty.print(&self.model, &mut out, size, end)
            }
            Kind::RawJson | Kind::Quiet => Ok(()),
        }
    }

    /// The last lines of what failed, once more at the end where they are found.
    fn failures(&self) -> io::Result<()> {
        if self.kind == Kind::RawJson {
            return Ok(());
        }
        let mut out = io::stderr().lock();
        for step in self.model.in_order().into_iter().filter(|step| !step.error.is_empty() && !step.is_canceled()) {
            writeln!(out, "------\n > {}:", step.name)?;
            for line in step.tail.iter().chain(&step.partial) {
                writeln!(out, "{line}")?;
            }
            writeln!(out, "------")?;
        }
        Ok(())
    }
}
