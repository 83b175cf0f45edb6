//! The 512-byte header block and its fields.
use super::TarError;

pub(crate) const BLOCK: usize = 512;

/// Where the fields are: V7 fields, then those of USTAR.
pub(crate) mod field {
    use std::ops::Range;

    pub const NAME: Range<usize> = 0..100;
    pub const MODE: Range<usize> = 100..108;
    pub const UID: Range<usize> = 108..116;
    pub const GID: Range<usize> = 116..124;
    pub const SIZE: Range<usize> = 124..136;
    pub const MTIME: Range<usize> = 136..148;
    pub const CHECKSUM: Range<usize> = 148..156;
    pub const TYPE: usize = 156;
    pub const LINK: Range<usize> = 157..257;
    pub const MAGIC: Range<usize> = 257..263;
    pub const VERSION: Range<usize> = 263..265;
    pub const DEV_MAJOR: Range<usize> = 329..337;
    pub const DEV_MINOR: Range<usize> = 337..345;
    pub const PREFIX: Range<usize> = 345..500;
    /// Schilling's tar ends its shorter prefix here.
    pub const STAR_PREFIX: Range<usize> = 345..476;
    pub const STAR_TRAILER: Range<usize> = 508..512;
    pub const GNU_SPARSE: Range<usize> = 386..482;
    pub const GNU_EXTENDED: usize = 482;
    pub const GNU_REAL_SIZE: Range<usize> = 483..495;
}

pub(crate) type Block = [u8; BLOCK];

/// Fails if the checksum, of signed or unsigned bytes, is wrong.
pub(crate) fn verify(block: &Block) -> Result<(), TarError> {
    let stored = octal(&block[field::CHECKSUM])?;
    let byte = |at: usize| if field::CHECKSUM.contains(&at) { b' ' } else { block[at] };
    let unsigned: i64 = (0..BLOCK).map(|at| i64::from(byte(at))).sum();
    let signed: i64 = (0..BLOCK).map(|at| i64::from(byte(at) as i8)).sum();
    if stored == unsigned || stored == signed { Ok(()) } else { Err(TarError::Header("checksum")) }
}

/// Up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// Octal digits, or big-endian two's complement if the first bit is set.
pub(crate) fn number(field: &[u8]) -> Result<i64, TarError> {
    let Some(&first) = field.first().filter(|b| **b & 0x80 != 0) else { return octal(field) };
    let negative = first & 0x40 != 0;
    let invert = if negative { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (at, &byte) in field.iter().enumerate() {
        let byte = if at == 0 { (byte ^ invert) & 0x7f } else { byte ^ invert };
        if value >> 56 > 0 {
            return Err(TarError::Header("number"));
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| TarError::Header("number"))?;
    Ok(if negative { !value } else { value })
}

pub(crate) fn octal(field: &[u8]) -> Result<i64, TarError> {
    let padding = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !padding(b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !padding(b)).map_or(start, |at| at + 1);
    let digits = text(&field[start..end]);
    if digits.is_empty() {
        return Ok(0);
    }
    let parsed = std::str::from_utf8(digits).ok().and_then(|digits| i64::from_str_radix(digits, 8).ok());
    parsed.filter(|value| *value >= 0).ok_or(TarError::Header("number"))
}
