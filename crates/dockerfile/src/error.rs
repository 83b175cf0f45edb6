use std::fmt;

use crate::Lines;

/// A Dockerfile that cannot be built: why, and the places it is about.
///
/// `Display` prints the whole chain as users of BuildKit know it. What an [`Ask`](crate::Ask) failed with stays reachable through
/// [`Error::cause`].
#[derive(Debug)]
pub struct Error {
    message: String,
    cause: Option<Cause>,
    /// Innermost first. `None` is a place that is not in the file, such as a stage that only a `--mount=from` names.
    locations: Vec<Option<Lines>>,
}

/// What somebody outside of this room failed with.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), cause: None, locations: Vec::new() }
    }

    /// A failure of somebody else, passed on.
    pub fn caused_by(cause: Cause) -> Self {
        Self { message: String::new(), cause: Some(cause), locations: Vec::new() }
    }

    pub fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    pub fn into_cause(self) -> Option<Cause> {
        self.cause
    }

    pub fn locations(&self) -> &[Option<Lines>] {
        &self.locations
    }

    /// What stands in front of the cause; the whole text where there is none.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Puts `message: ` in front.
    pub fn context(mut self, message: impl fmt::Display) -> Self {
        self.message =
            if self.message.is_empty() && self.cause.is_some() { message.to_string() } else { format!("{message}: {}", self.message) };
        self
    }

    /// Puts ` (did you mean …?)` behind.
    pub fn suggest(mut self, guess: Option<String>) -> Self {
        let Some(guess) = guess else { return self };
        if self.cause.is_some() {
            // The guess belongs behind the cause's text.
            let cause = self.cause.take().expect("checked above");
            self.cause = Some(Box::new(Suggested { cause, guess }));
        } else {
            self.message = format!("{} (did you mean {guess}?)", self.message);
        }
        self
    }

    /// Adds a place.
    pub fn at(mut self, place: impl Into<Option<Lines>>) -> Self {
        self.locations.push(place.into());
        self
    }

    /// Replaces all places by this one.
    pub fn moved_to(mut self, place: impl Into<Option<Lines>>) -> Self {
        self.locations = vec![place.into()];
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.cause {
            None => Ok(()),
            Some(cause) if self.message.is_empty() => write!(f, "{cause}"),
            Some(cause) => write!(f, ": {cause}"),
        }
    }
}

impl std::error::Error for Error {}

/// A cause with a guess at what was meant.
#[derive(Debug)]
pub struct Suggested {
    pub cause: Cause,
    pub guess: String,
}

impl fmt::Display for Suggested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (did you mean {}?)", self.cause, self.guess)
    }
}

impl std::error::Error for Suggested {}
