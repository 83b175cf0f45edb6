//! Copies an archive with times no later than a given one. Everything else stays byte for byte what it was, which for archives written by Go's
//! `archive/tar` is what reading and writing them there would give.
use std::io::{Read, Write};

use super::TarError;
use super::block::{self, BLOCK, Block, field};
use super::pax::{self, Record};
use super::writer::{fits_octal, put_octal, record};

/// Extended headers may not be longer than this.
const LONGEST_HEADER: u64 = 1 << 20;
/// Where GNU's own header has access and change times.
const GNU_TIMES: [std::ops::Range<usize>; 2] = [345..357, 357..369];

/// `latest` in seconds since 1970. What follows the end of the archive is read and dropped.
pub(crate) fn retime(mut input: impl Read, out: &mut dyn Write, latest: i64) -> Result<(), TarError> {
    let mut extended: Option<Extended> = None;
    loop {
        let mut header = [0; BLOCK];
        if !fill(&mut input, &mut header)? || header.iter().all(|&b| b == 0) {
            break;
        }
        block::verify(&header)?;
        let size = u64::try_from(block::number(&header[field::SIZE])?).map_err(|_| TarError::Header("negative number"))?;
        match header[field::TYPE] {
            b'x' => {
                let data = small(&mut input, size)?;
                extended = Some(Extended { header, records: pax::parse(&data)?, data });
            }
            b'g' | b'L' | b'K' => {
                out.write_all(&header)?;
                copy(&mut input, out, padded(size))?;
            }
            _ => {
                let extended = extended.take();
                let stored = extended.as_ref().map_or(Ok(size), |extended| extended.size(size))?;
                let own_time = extended.as_ref().and_then(Extended::time);
                if let Some(extended) = extended {
                    extended.write(out, latest)?;
                }
                clamp_header(&mut header, latest, own_time)?;
                out.write_all(&header)?;
                if header[field::TYPE] == b'S' {
                    copy_sparse_map(&mut input, out, &header)?;
                }
                let has_data = matches!(header[field::TYPE], 0 | b'0' | b'7' | b'S');
                copy(&mut input, out, if has_data { padded(stored) } else { 0 })?;
            }
        }
    }
    out.write_all(&[0; 2 * BLOCK])?;
    std::io::copy(&mut input, &mut std::io::sink())?;
    Ok(())
}

/// A header that says more of the next entry.
struct Extended {
    header: Block,
    records: Vec<Record>,
    data: Vec<u8>,
}

impl Extended {
    /// The modification time, in seconds and nanoseconds, if it is not that of the plain header.
    fn time(&self) -> Option<(i64, u32)> {
        let (_, value) = self.records.iter().rev().find(|(key, value)| key == b"mtime" && !value.is_empty())?;
        pax::time(value).ok()
    }

    fn size(&self, plain: u64) -> Result<u64, TarError> {
        let record = self.records.iter().rev().find(|(key, value)| key == b"size" && !value.is_empty());
        let Some((_, value)) = record else { return Ok(plain) };
        u64::try_from(pax::number(value)?).map_err(|_| TarError::Header("negative number"))
    }

    /// A modification time that is clamped goes to the plain header, where it fits; the others have no place there.
    fn write(mut self, out: &mut dyn Write, latest: i64) -> Result<(), TarError> {
        let is_later = |value: &[u8]| pax::time(value).is_ok_and(|time| time > (latest, 0));
        let before = self.records.clone();
        self.records.retain(|(key, value)| !(key == b"mtime" && is_later(value) && fits(latest)));
        for (key, value) in &mut self.records {
            if matches!(key.as_slice(), b"mtime" | b"atime" | b"ctime") && is_later(value) {
                *value = latest.to_string().into_bytes();
            }
        }
        if self.records.is_empty() && !before.is_empty() {
            return Ok(());
        }
        if self.records != before {
            self.data.clear();
            self.records.iter().for_each(|(key, value)| record(&mut self.data, key, value));
            put_octal(&mut self.header[field::SIZE], self.data.len() as i64);
            checksum(&mut self.header);
        }
        out.write_all(&self.header)?;
        out.write_all(&self.data)?;
        out.write_all(&[0; BLOCK][..self.data.len().wrapping_neg() % BLOCK])?;
        Ok(())
    }
}

fn fits(time: i64) -> bool {
    fits_octal(field::MTIME.len(), time)
}

/// `own_time` is what an extended header said.
fn clamp_header(header: &mut Block, latest: i64, own_time: Option<(i64, u32)>) -> Result<(), TarError> {
    let plain = block::number(&header[field::MTIME])?;
    let mut changed = false;
    if own_time.unwrap_or((plain, 0)) > (latest, 0) {
        put_octal(&mut header[field::MTIME], latest);
        changed = true;
    }
    if &header[field::MAGIC] == b"ustar " {
        for range in GNU_TIMES {
            let is_given = header[range.start] != 0;
            if is_given && block::number(&header[range.clone()])? > latest {
                put_octal(&mut header[range], latest);
                changed = true;
            }
        }
    }
    if changed {
        checksum(header);
    }
    Ok(())
}

fn checksum(header: &mut Block) {
    header[field::CHECKSUM].fill(b' ');
    let sum: i64 = header.iter().map(|&b| i64::from(b)).sum();
    put_octal(&mut header[field::CHECKSUM.start..field::CHECKSUM.end - 1], sum);
}

/// The blocks of an old sparse file's map that do not fit its header.
fn copy_sparse_map(input: &mut impl Read, out: &mut dyn Write, header: &Block) -> Result<(), TarError> {
    let mut more = header[field::GNU_EXTENDED] != 0;
    while more {
        let mut block = [0; BLOCK];
        if !fill(input, &mut block)? {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        out.write_all(&block)?;
        more = block[504] != 0;
    }
    Ok(())
}

fn padded(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64)
}

fn small(input: &mut impl Read, size: u64) -> Result<Vec<u8>, TarError> {
    if size > LONGEST_HEADER {
        return Err(TarError::Header("extended header too long"));
    }
    let mut data = vec![0; usize::try_from(padded(size)).expect("not longer than the limit")];
    input.read_exact(&mut data)?;
    data.truncate(size as usize);
    Ok(data)
}

fn copy(input: &mut impl Read, out: &mut dyn Write, size: u64) -> Result<(), TarError> {
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(256 << 10)];
    let mut left = size;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        input.read_exact(&mut buffer[..most])?;
        out.write_all(&buffer[..most])?;
        left -= most as u64;
    }
    Ok(())
}

/// `false` at the end of the input; an error in the middle of a block.
fn fill(input: &mut impl Read, block: &mut Block) -> Result<bool, TarError> {
    let mut filled = 0;
    while filled < BLOCK {
        match input.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{EntryKind, Header, Reader, Writer};

    fn header(name: &str, mtime: i64, size: u64) -> Header {
        let kind = if name.ends_with('/') { EntryKind::Directory } else { EntryKind::File };
        Header {
            kind,
            name: name.into(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            mtime,
            device: (0, 0),
            xattrs: Default::default(),
        }
    }

    fn archive(times: [i64; 3]) -> Vec<u8> {
        let mut tar = Writer::new(Vec::new());
        tar.header(&header("d/", times[0], 0)).unwrap();
        tar.header(&header(&format!("d/{}", "n".repeat(120)), times[1], 3)).unwrap();
        tar.data(b"abc").unwrap();
        tar.header(&header("é", times[2], 0)).unwrap();
        tar.finish().unwrap()
    }

    fn retimed(input: &[u8], latest: i64) -> Vec<u8> {
        let mut out = Vec::new();
        retime(input, &mut out, latest).unwrap();
        out
    }

    #[test]
    fn the_result_is_what_writing_with_those_times_gives() {
        let input = archive([5, 100, 200]);
        assert_eq!(retimed(&input, 100), archive([5, 100, 100]));
        assert_eq!(retimed(&input, 0), archive([0, 0, 0]));
        assert_eq!(retimed(&input, 1000), input);
        // Zeros behind the end do not come along.
        assert_eq!(retimed(&[input.clone(), vec![0; 9000]].concat(), 1000), input);
    }

    #[test]
    fn times_in_extended_headers_are_clamped_too() {
        let mut far = header("a", 1 << 40, 0);
        far.xattrs.insert(b"k".to_vec(), b"v".to_vec());
        let write = |header: &Header| {
            let mut tar = Writer::new(Vec::new());
            tar.header(header).unwrap();
            tar.finish().unwrap()
        };
        let near = Header { mtime: 7, ..far.clone() };
        assert_eq!(retimed(&write(&far), 7), write(&near));
        let plain = Header { xattrs: Default::default(), ..far };
        assert_eq!(retimed(&write(&plain), 7), write(&Header { xattrs: Default::default(), ..near }), "no extended header is left");
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let input = archive([1, 1, 1]);
        for length in [100, 700, 2000] {
            assert!(retime(&input[..length], &mut Vec::new(), 0).is_err(), "{length}");
        }
        let mut reader = Reader::new(&retimed(&input, 0)[..]).next().unwrap().into_iter();
        assert_eq!(reader.next().unwrap().mtime, (0, 0));
    }
}
