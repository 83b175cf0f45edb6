//! Changes of permissions as chmod(1) writes them.
//!
//! The grammar and its corner cases are those of BSD's setmode(3), which BuildKit uses, with an empty umask.

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
/// What `a` and an absent class stand for where bits are cleared.
const STANDARD: u32 = SETUID | SETGID | 0o777;
const EXECUTE: u32 = 0o111;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ModeError {
    #[error("invalid syntax")]
    Syntax,
    #[error("strconv.ParseInt: parsing {text:?}: {reason}")]
    Number { text: String, reason: &'static str },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModeChange(Vec<Step>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Clear(u32),
    Set(u32),
    /// Of directories, and of files that someone may execute.
    SetIfExecutable(u32),
    /// The three bits of the class at `from` (its shift) to the classes `to`.
    Copy {
        from: u32,
        to: [bool; 3],
        op: u8,
    },
}

/// Shifts of user, group, other.
const CLASSES: [u32; 3] = [6, 3, 0];

impl ModeChange {
    pub(super) fn parse(text: &str) -> Result<Self, ModeError> {
        match text.bytes().next() {
            None => Err(ModeError::Syntax),
            Some(b'0'..=b'9') => absolute(text),
            Some(_) => Parser { rest: text.as_bytes(), steps: Vec::new(), cleared: false }.run(),
        }
    }

    /// The permission bits that `old` becomes.
    pub(super) fn apply(&self, old: u32, is_dir: bool) -> u32 {
        let mut new = old & 0o7777;
        for step in &self.0 {
            match *step {
                Step::Clear(bits) => new &= !bits,
                Step::Set(bits) => new |= bits,
                Step::SetIfExecutable(bits) if is_dir || old & EXECUTE != 0 => new |= bits,
                Step::SetIfExecutable(_) => {}
                Step::Copy { from, to, op } => new = copied(new, from, to, op),
            }
        }
        new & 0o7777
    }
}

fn copied(mut mode: u32, from: u32, to: [bool; 3], op: u8) -> u32 {
    let value = mode >> from & 0o7;
    for (shift, _) in CLASSES.iter().zip(to).filter(|(_, wanted)| *wanted) {
        match op {
            b'+' => mode |= value << shift,
            b'-' => mode &= !(value << shift),
            _ => mode = mode & !(0o7 << shift) | value << shift,
        }
    }
    mode
}

fn absolute(text: &str) -> Result<ModeChange, ModeError> {
    let number = |reason| ModeError::Number { text: text.to_owned(), reason };
    if !text.bytes().all(|b| matches!(b, b'0'..=b'7')) {
        return Err(number("invalid syntax"));
    }
    let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o77777).ok_or_else(|| number("value out of range"))?;
    if bits & !0o7777 != 0 {
        return Err(ModeError::Syntax);
    }
    Ok(ModeChange(vec![Step::Clear(0o7777), Step::Set(bits)]))
}

struct Parser<'a> {
    rest: &'a [u8],
    steps: Vec<Step>,
    /// The current `=` has cleared its bits.
    cleared: bool,
}

impl Parser<'_> {
    fn run(mut self) -> Result<ModeChange, ModeError> {
        loop {
            let mut who = self.classes()?;
            loop {
                let op = self.operator()?;
                self.permissions(op, &mut who);
                match self.rest {
                    [] => return Ok(ModeChange(self.steps)),
                    [b',', rest @ ..] => {
                        self.rest = rest;
                        break;
                    }
                    _ => {}
                }
            }
        }
    }

    fn classes(&mut self) -> Result<u32, ModeError> {
        let mut who = 0;
        while let [first, rest @ ..] = self.rest {
            who |= match first {
                b'a' => STANDARD,
                b'u' => SETUID | 0o700,
                b'g' => SETGID | 0o070,
                b'o' => 0o007,
                _ => return Ok(who),
            };
            self.rest = rest;
        }
        Err(ModeError::Syntax)
    }

    fn operator(&mut self) -> Result<u8, ModeError> {
        match self.rest {
            [op @ (b'+' | b'-' | b'='), rest @ ..] => {
                self.rest = rest;
                if *op == b'=' {
                    self.cleared = false;
                }
                Ok(*op)
            }
            _ => Err(ModeError::Syntax),
        }
    }

    fn permissions(&mut self, op: u8, who: &mut u32) {
        *who &= !STICKY;
        let (mut bits, mut executable) = (0, 0);
        while let [first, rest @ ..] = self.rest {
            // With other users alone, setuid, setgid and sticky mean nothing.
            let special = *who == 0 || *who & !0o007 != 0;
            match first {
                b'r' => bits |= 0o444,
                b'w' => bits |= 0o222,
                b'x' => bits |= EXECUTE,
                b'X' if op == b'-' => bits |= EXECUTE,
                b'X' => executable = EXECUTE,
                b's' if special => bits |= SETUID | SETGID,
                b't' if special => {
                    *who |= STICKY;
                    bits |= STICKY;
                }
                b's' | b't' => {}
                b'u' | b'g' | b'o' => {
                    self.flush(op, *who, &mut bits, false);
                    self.cleared |= op == b'=';
                    self.flush_executable(*who, &mut executable);
                    let from = match first {
                        b'u' => 6,
                        b'g' => 3,
                        _ => 0,
                    };
                    let to = if *who == 0 { [true; 3] } else { [*who & 0o400 != 0, *who & 0o040 != 0, *who & 0o004 != 0] };
                    self.steps.push(Step::Copy { from, to, op });
                }
                _ => break,
            }
            self.rest = rest;
        }
        let must_clear = op == b'=' && !self.cleared;
        self.cleared |= op == b'=';
        self.flush(op, *who, &mut bits, must_clear);
        self.flush_executable(*who, &mut executable);
    }

    fn flush(&mut self, op: u8, who: u32, bits: &mut u32, even_if_none: bool) {
        let set = std::mem::take(bits);
        if set == 0 && !even_if_none {
            return;
        }
        let limited = if who == 0 { set } else { who & set };
        match op {
            b'-' => self.steps.push(Step::Clear(limited)),
            b'+' => self.steps.push(Step::Set(limited)),
            _ => self.steps.extend([Step::Clear(if who == 0 { STANDARD } else { who }), Step::Set(limited)]),
        }
    }

    fn flush_executable(&mut self, who: u32, bits: &mut u32) {
        if std::mem::take(bits) != 0 {
            self.steps.push(Step::SetIfExecutable(if who == 0 { EXECUTE } else { who & EXECUTE }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_upstream() {
        // text | mode | d for directories | what BuildKit's own code makes of it
        for line in include_str!("../../tests/golden/mode.txt").lines() {
            let fields: Vec<&str> = line.split('|').collect();
            let old = u32::from_str_radix(fields[1], 8).unwrap();
            let outcome = match ModeChange::parse(fields[0]) {
                Ok(change) => format!("{:o}", change.apply(old, fields[2] == "d")),
                Err(error) => format!("error: {error}"),
            };
            assert_eq!(outcome, fields[3], "{line}");
        }
    }
}
