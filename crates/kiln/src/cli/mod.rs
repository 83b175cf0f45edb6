//! The client's command line.
use std::ffi::OsString;
use std::process::ExitCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Kiln,
    Buildctl,
}

pub fn main(_: Vec<OsString>, mode: Mode) -> ExitCode {
    eprintln!("kiln: the command line {mode:?} is not part of this build yet");
    ExitCode::FAILURE
}
