//! Bounded reading of a file that says itself where its parts are.
use std::io::{Read, Seek, SeekFrom};

use crate::rpm::RpmError;

const SHORT: RpmError = RpmError::Damaged("it ends early");

const CIRCLE: RpmError = RpmError::Damaged("its parts refer to each other in a circle");
/// No package's header has more bytes.
const MAX_HEADER: u64 = 64 << 20;

/// A file of which little more is read than it has, however its parts refer to each other.
pub(super) struct Bytes<'a, R> {
    file: &'a mut R,
    left: u64,
}

impl<'a, R: Read + Seek> Bytes<'a, R> {
    pub fn new(file: &'a mut R) -> Result<Self, RpmError> {
        // Nothing is looked at more than twice, but for the start.
        let left = file.seek(SeekFrom::End(0))?.saturating_add(64 << 10).saturating_mul(2);
        Ok(Self { file, left })
    }

    /// Whether so many bytes may still be read.
    pub fn expect(&self, length: u64) -> Result<(), RpmError> {
        if length <= self.left { Ok(()) } else { Err(CIRCLE) }
    }

    pub fn at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, RpmError> {
        let bytes = self.at_most(offset, length)?;
        if bytes.len() == length { Ok(bytes) } else { Err(SHORT) }
    }

    pub fn at_most(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, RpmError> {
        self.left = self.left.checked_sub(length as u64).ok_or(CIRCLE)?;
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The length of a header, if it can be one.
pub(super) fn header_length(length: u64) -> Result<usize, RpmError> {
    if length <= MAX_HEADER { Ok(length as usize) } else { Err(RpmError::Damaged("a package's header is too long")) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Little,
}

impl Order {
    pub fn short(self, from: &[u8], at: usize) -> Result<usize, RpmError> {
        let bytes = part(from, at)?;
        Ok(match self {
            Self::Big => u16::from_be_bytes(bytes),
            Self::Little => u16::from_le_bytes(bytes),
        }
        .into())
    }

    pub fn word(self, from: &[u8], at: usize) -> Result<u32, RpmError> {
        let bytes = part(from, at)?;
        Ok(match self {
            Self::Big => u32::from_be_bytes(bytes),
            Self::Little => u32::from_le_bytes(bytes),
        })
    }
}

fn part<const N: usize>(from: &[u8], at: usize) -> Result<[u8; N], RpmError> {
    from.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(SHORT)
}
