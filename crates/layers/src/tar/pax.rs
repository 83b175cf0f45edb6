//! Extended headers.
use super::TarError;

/// Key and value.
pub(crate) type Record = (Vec<u8>, Vec<u8>);

/// Records of one extended header, in order; keys may repeat.
pub(crate) fn parse(mut data: &[u8]) -> Result<Vec<Record>, TarError> {
    let bad = || TarError::Header("extended record");
    let mut records = Vec::new();
    while !data.is_empty() {
        let space = data.iter().position(|&b| b == b' ').ok_or_else(bad)?;
        let length: usize = std::str::from_utf8(&data[..space]).ok().and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
        if length < 5 || length > data.len() || length <= space + 1 {
            return Err(bad());
        }
        let (record, rest) = data.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|&b| b == b'=').filter(|at| *at > 0).ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
        if is_text && value.contains(&0) || key.contains(&0) {
            return Err(bad());
        }
        records.push((key.to_vec(), value.to_vec()));
        data = rest;
    }
    Ok(records)
}

/// Decimal seconds with a fraction, to seconds and nanoseconds.
pub(crate) fn time(value: &[u8]) -> Result<(i64, u32), TarError> {
    let bad = || TarError::Header("time");
    let value = std::str::from_utf8(value).map_err(|_| bad())?;
    let (seconds, fraction) = value.split_once('.').unwrap_or((value, ""));
    let negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().map_err(|_| bad())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().map_err(|_| bad())?;
    match (negative, nanos) {
        (true, 1..) => Ok((seconds.checked_sub(1).ok_or_else(bad)?, 1_000_000_000 - nanos)),
        _ => Ok((seconds, nanos)),
    }
}

pub(crate) fn number(value: &[u8]) -> Result<i64, TarError> {
    std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).ok_or(TarError::Header("number"))
}
