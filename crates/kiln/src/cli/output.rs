//! Standard output of commands. A reader that has gone away ends the program, quietly.
use std::io::{self, Write as _};

pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("error: failed to write: {error}");
        }
        std::process::exit(1);
    }
}

pub fn print_line(text: impl std::fmt::Display) {
    print(&format!("{text}\n"));
}
