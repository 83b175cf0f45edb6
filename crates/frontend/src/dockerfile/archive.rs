//! Just enough of archives and git objects to tell what they are and how old.
use std::io::Read;

use fault::Result;
use oci::Timestamp;

use super::opts::invalid;

const BLOCK: usize = 512;

/// Whether a download is an archive, by its first bytes. zstd is not taken for one, as BuildKit has it.
pub(super) fn is_archive(head: &[u8]) -> bool {
    const MAGIC: [&[u8]; 3] = [b"BZh", &[0x1f, 0x8b, 0x08], &[0xfd, b'7', b'z', b'X', b'Z', 0]];
    MAGIC.iter().any(|magic| head.starts_with(magic)) || head.get(..BLOCK).is_some_and(header_sum_fits)
}

/// A tar header holds the sum of its own bytes, itself taken as blanks.
fn header_sum_fits(block: &[u8]) -> bool {
    let sum = |signed: bool| {
        let value = |b: u8| if signed { i64::from(b as i8) } else { i64::from(b) };
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { i64::from(b' ') } else { value(*b) }).sum::<i64>()
    };
    let Some(stored) = octal(&block[148..156]) else { return false };
    block.iter().any(|b| *b != 0) && (stored == sum(false) || stored == sum(true))
}

fn octal(field: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(field).ok()?;
    i64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

/// A size or time: octal, or base 256 where octal has no room.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 == 0 {
        return if field.iter().all(|b| matches!(b, 0 | b' ')) { Some(0) } else { octal(field) };
    }
    let negative = field[0] & 0x40 != 0;
    let start = if negative { -1i64 } else { 0 };
    field.iter().enumerate().try_fold(start, |n, (i, b)| {
        let byte = if i == 0 { if negative { *b } else { b & 0x7f } } else { *b };
        n.checked_mul(256).map(|n| n | i64::from(byte))
    })
}

/// Unix seconds of the newest regular file in a tar, compressed with gzip or not at all. `None` where there is none to be found.
pub(super) fn newest_file(data: &[u8]) -> Option<i64> {
    if data.starts_with(&[0x1f, 0x8b, 0x08]) { newest_in(&mut flate2::read::MultiGzDecoder::new(data)) } else { newest_in(&mut &data[..]) }
}

fn newest_in(tar: &mut dyn Read) -> Option<i64> {
    let mut newest = None;
    let mut extended: Option<i64> = None;
    let mut block = [0u8; BLOCK];
    loop {
        if tar.read_exact(&mut block).is_err() || block.iter().all(|b| *b == 0) {
            return newest;
        }
        if !header_sum_fits(&block) {
            return None;
        }
        let size = u64::try_from(number(&block[124..136])?).ok()?;
        let padded = size.checked_next_multiple_of(BLOCK as u64)?;
        match block[156] {
            b'x' if size <= 1 << 20 => {
                let mut records = Vec::new();
                tar.take(padded).read_to_end(&mut records).ok()?;
                extended = extended_time(&records);
                continue;
            }
            b'0' | 0 | b'7' => {
                let time = extended.take().or_else(|| number(&block[136..148]))?;
                newest = Some(newest.map_or(time, |known: i64| known.max(time)));
            }
            _ => extended = None,
        }
        std::io::copy(&mut tar.take(padded), &mut std::io::sink()).ok()?;
    }
}

/// `20 mtime=1700000000.5\n`
fn extended_time(records: &[u8]) -> Option<i64> {
    let text = String::from_utf8_lossy(records);
    let value = text.lines().find_map(|line| line.split_once(' ')?.1.strip_prefix("mtime="))?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let seconds: i64 = whole.parse().ok()?;
    let below = value.starts_with('-') && fraction.bytes().any(|b| b != b'0');
    Some(seconds - i64::from(below))
}

/// The time on a raw commit object's committer line, in its own zone.
pub(super) fn commit_date(object: &[u8]) -> Result<Option<Timestamp>> {
    let text = String::from_utf8_lossy(object);
    let mut headers = text.lines().take_while(|line| !line.is_empty());
    let committer = headers.find_map(|line| line.strip_prefix("committer "));
    let committer = committer.ok_or_else(|| invalid("invalid commit object: missing committer header"))?;
    Ok(committer.rsplit_once('>').and_then(|(_, rest)| zoned(rest)))
}

/// `1700000000 +0200`
fn zoned(text: &str) -> Option<Timestamp> {
    let mut words = text.split_whitespace();
    let seconds: i64 = words.next()?.parse().ok()?;
    let zone = words.next().unwrap_or("+0000");
    let (hours, minutes): (i64, i64) = (zone.get(1..3)?.parse().ok()?, zone.get(3..5)?.parse().ok()?);
    let east = (hours * 3600 + minutes * 60) * if zone.starts_with('-') { -1 } else { 1 };
    if east == 0 {
        return Some(Timestamp::from_unix(seconds, 0));
    }
    let local = Timestamp::from_unix(seconds.checked_add(east)?, 0).to_string();
    format!("{}{}:{}", local.strip_suffix('Z')?, &zone[..3], &zone[3..5]).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: u8, mtime: u64, body: &[u8]) -> Vec<u8> {
        let mut block = vec![0u8; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
        block[136..147].copy_from_slice(format!("{mtime:011o}").as_bytes());
        block[156] = kind;
        let sum: u32 = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block.extend_from_slice(body);
        block.resize(block.len().next_multiple_of(BLOCK), 0);
        block
    }

    #[test]
    fn tells_archives() {
        assert!(is_archive(b"BZh9"));
        assert!(is_archive(&[0x1f, 0x8b, 0x08, 0]));
        assert!(is_archive(&entry("a", b'0', 1, b"x")));
        assert!(!is_archive(b"FROM alpine\n"));
        assert!(!is_archive(&[0; 1024]));
        assert!(!is_archive(&[0x28, 0xb5, 0x2f, 0xfd]));
    }

    #[test]
    fn finds_the_newest_regular_file() {
        let pax = b"25 mtime=1700000500.123456\n";
        let tar: Vec<u8> = [
            entry("dir", b'5', 1_800_000_000, b""),
            entry("old", b'0', 1_600_000_000, &[1; 700]),
            entry("pax", b'x', 0, pax),
            entry("new", b'0', 5, b"y"),
            vec![0; 1024],
        ]
        .concat();
        assert_eq!(newest_file(&tar), Some(1_700_000_500));
        let mut gzip = flate2::read::GzEncoder::new(&tar[..], flate2::Compression::fast());
        let mut packed = Vec::new();
        gzip.read_to_end(&mut packed).unwrap();
        assert_eq!(newest_file(&packed), Some(1_700_000_500));
        assert_eq!(newest_file(b"not a tar"), None);
        assert_eq!(newest_file(&tar[..900]), None);
    }

    #[test]
    fn reads_commit_dates() {
        let object = b"tree 0\nparent 1\nauthor A <a@b> 1 +0000\ncommitter C D <c> d@e> 1700000000 +0200\n\ncommitter x 5\n";
        let date = commit_date(object).unwrap().unwrap();
        assert_eq!((date.unix_seconds(), date.to_string().as_str()), (1_700_000_000, "2023-11-15T00:13:20+02:00"));
        assert!(commit_date(b"tree 0\n\n").is_err());
    }
}
