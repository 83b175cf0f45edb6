//! The four ways to store files with holes: GNU's old header, and PAX versions 0.0, 0.1 and 1.0.
use std::io::Read;

use super::block::{self, BLOCK, Block, field};
use super::{TarError, pax};

/// A stretch of data: where it lies in the file, and how long it is.
pub(crate) type Segment = (u64, u64);

/// More than this is not a file but an attack.
const MOST: usize = 1 << 20;

/// Reads the map of an old GNU header, which may go on in blocks after it.
pub(crate) fn gnu(header: &Block, input: &mut impl Read) -> Result<Vec<Segment>, TarError> {
    let mut map = Vec::new();
    entries(&header[field::GNU_SPARSE], &mut map)?;
    let mut more = header[field::GNU_EXTENDED] != 0;
    while more {
        let mut block = [0; BLOCK];
        input.read_exact(&mut block)?;
        entries(&block[..21 * 24], &mut map)?;
        more = block[21 * 24] != 0;
        check_length(&map)?;
    }
    Ok(map)
}

fn entries(fields: &[u8], map: &mut Vec<Segment>) -> Result<(), TarError> {
    for entry in fields.chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        map.push((size(block::number(&entry[..12])?)?, size(block::number(&entry[12..])?)?));
    }
    Ok(())
}

/// The map of version 0.0 (an offset and a length record for each segment) or 0.1 (one record).
pub(crate) fn pax_0(records: &[pax::Record]) -> Result<Vec<Segment>, TarError> {
    let mut numbers = Vec::new();
    for (key, value) in records {
        match key.as_slice() {
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => numbers.push(size(pax::number(value)?)?),
            b"GNU.sparse.map" if value.is_empty() => {}
            b"GNU.sparse.map" => {
                numbers = value.split(|&b| b == b',').map(|n| size(pax::number(n)?)).collect::<Result<_, _>>()?;
            }
            _ => {}
        }
    }
    pairs(&numbers)
}

/// The map of version 1.0, which stands before the data. Also gives the bytes it took.
pub(crate) fn pax_1(input: &mut impl Read) -> Result<(Vec<Segment>, u64), TarError> {
    let mut text = Vec::new();
    let mut taken = 0;
    let mut next = |text: &mut Vec<u8>| -> Result<u64, TarError> {
        loop {
            if let Some(end) = text.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                return size(pax::number(&line[..end])?);
            }
            if text.len() > BLOCK {
                return Err(TarError::Header("sparse map"));
            }
            let mut block = [0; BLOCK];
            input.read_exact(&mut block)?;
            taken += BLOCK as u64;
            text.extend_from_slice(&block);
        }
    };
    let count = next(&mut text)?;
    if count > MOST as u64 {
        return Err(TarError::Header("sparse map"));
    }
    let numbers = (0..count * 2).map(|_| next(&mut text)).collect::<Result<Vec<_>, _>>()?;
    Ok((pairs(&numbers)?, taken))
}

fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, TarError> {
    if !numbers.len().is_multiple_of(2) {
        return Err(TarError::Header("sparse map"));
    }
    let map = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>();
    check_length(&map)?;
    Ok(map)
}

fn check_length(map: &[Segment]) -> Result<(), TarError> {
    if map.len() > MOST { Err(TarError::Header("sparse map")) } else { Ok(()) }
}

/// Segments must follow each other within the file, and be what the archive holds.
pub(crate) fn validate(map: &[Segment], real_size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0;
    let mut data: u64 = 0;
    for &(offset, length) in map {
        if offset < end {
            return Err(TarError::Header("sparse map"));
        }
        end = offset.checked_add(length).filter(|end| *end <= real_size).ok_or(TarError::Header("sparse map"))?;
        data += length;
    }
    if data == stored { Ok(()) } else { Err(TarError::Header("sparse map")) }
}

fn size(value: i64) -> Result<u64, TarError> {
    u64::try_from(value).map_err(|_| TarError::Header("number"))
}
