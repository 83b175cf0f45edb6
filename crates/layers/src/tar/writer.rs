//! Writes archives with exactly the bytes of Go's `archive/tar` for headers that ask for the PAX format or for none: USTAR where that can
//! hold the header, PAX otherwise.
use std::collections::BTreeMap;
use std::io::{self, Write};

use super::EntryKind;
use super::block::{BLOCK, Block, field};

/// Extended records, or attributes, by name.
pub(crate) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// One member to write. Owner names and access times are never written.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub kind: EntryKind,
    /// Of a directory with a slash at its end.
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of a file; the data that must follow.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    pub device: (u32, u32),
    pub xattrs: Records,
}

pub(crate) struct Writer<W> {
    out: W,
    padding: usize,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out, padding: 0 }
    }

    /// Begins a member. Its data, `size` bytes, must then be written with [`Writer::data`].
    pub fn header(&mut self, header: &Header) -> io::Result<()> {
        self.pad()?;
        let (ustar, records) = needs(header)?;
        if !ustar {
            self.extended(&header.name, &records)?;
        }
        let prefix = if ustar { split(&header.name) } else { None };
        let (prefix, name) = prefix.unwrap_or((b"", &header.name));
        let mut block = [0; BLOCK];
        put_text(&mut block[field::NAME], &ascii(name));
        put_text(&mut block[field::LINK], &ascii(&header.link));
        put_octal(&mut block[field::MODE], header.mode.into());
        put_octal(&mut block[field::UID], header.uid.into());
        put_octal(&mut block[field::GID], header.gid.into());
        put_octal(&mut block[field::SIZE], header.size.try_into().unwrap_or(-1));
        put_octal(&mut block[field::MTIME], header.mtime);
        put_octal(&mut block[field::DEV_MAJOR], header.device.0.into());
        put_octal(&mut block[field::DEV_MINOR], header.device.1.into());
        put_text(&mut block[field::PREFIX], prefix);
        self.block(block, type_flag(header.kind))?;
        self.padding = (header.size.wrapping_neg() % BLOCK as u64) as usize;
        Ok(())
    }

    pub fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.write_all(data)
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&[0; BLOCK][..padding])
    }

    fn extended(&mut self, name: &[u8], records: &Records) -> io::Result<()> {
        let mut data = Vec::new();
        for (key, value) in records {
            record(&mut data, key, value);
        }
        let (dir, file) = name.split_at(name.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1));
        let mut own = ascii(&[dir, b"PaxHeaders.0", if file.is_empty() { b"" } else { b"/" }, file].concat());
        own.truncate(field::NAME.len());
        while own.last() == Some(&b'/') {
            own.pop();
        }
        let mut block = [0; BLOCK];
        put_text(&mut block[field::NAME], &own);
        for range in [field::MODE, field::UID, field::GID, field::MTIME] {
            put_octal(&mut block[range], 0);
        }
        put_octal(&mut block[field::SIZE], data.len() as i64);
        self.block(block, b'x')?;
        self.out.write_all(&data)?;
        self.padding = data.len().wrapping_neg() % BLOCK;
        self.pad()
    }

    fn block(&mut self, mut block: Block, kind: u8) -> io::Result<()> {
        block[field::TYPE] = kind;
        block[field::MAGIC].copy_from_slice(b"ustar\0");
        block[field::VERSION].copy_from_slice(b"00");
        block[field::CHECKSUM].fill(b' ');
        let sum: i64 = block.iter().map(|&b| i64::from(b)).sum();
        put_octal(&mut block[field::CHECKSUM.start..field::CHECKSUM.end - 1], sum);
        self.out.write_all(&block)
    }
}

/// Whether USTAR can hold the header, and the records that PAX needs besides.
fn needs(header: &Header) -> io::Result<(bool, Records)> {
    let mut records = BTreeMap::new();
    let mut ustar = header.xattrs.is_empty();
    let fits = |text: &[u8], width: usize| text.len() <= width && is_ascii(text);
    if !fits(&header.name, field::NAME.len()) {
        records.insert(b"path".to_vec(), header.name.clone());
        ustar &= split(&header.name).is_some();
    }
    if !fits(&header.link, field::LINK.len()) {
        records.insert(b"linkpath".to_vec(), header.link.clone());
        ustar = false;
    }
    let numbers = [
        ("uid", i64::from(header.uid), field::UID),
        ("gid", i64::from(header.gid), field::GID),
        ("size", i64::try_from(header.size).map_err(io::Error::other)?, field::SIZE),
        ("mtime", header.mtime, field::MTIME),
    ];
    for (key, value, range) in numbers {
        if !fits_octal(range.len(), value) {
            records.insert(key.into(), value.to_string().into_bytes());
            ustar = false;
        }
    }
    for (name, value) in &header.xattrs {
        records.insert([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone());
    }
    for number in [header.device.0, header.device.1] {
        if !fits_octal(field::DEV_MAJOR.len(), number.into()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("device number {number} does not fit an archive")));
        }
    }
    Ok((ustar, records))
}

/// Splits a name for USTAR's two fields, if it has to be and can be.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let (most, prefix_most) = (field::NAME.len(), field::PREFIX.len());
    if name.len() <= most || !is_ascii(name) {
        return None;
    }
    let mut length = name.len();
    if length > prefix_most + 1 {
        length = prefix_most + 1;
    } else if name[length - 1] == b'/' {
        length -= 1;
    }
    let at = name[..length].iter().rposition(|&b| b == b'/')?;
    let rest = name.len() - at - 1;
    if at == 0 || rest > most || rest == 0 || at > prefix_most { None } else { Some((&name[..at], &name[at + 1..])) }
}

pub(crate) fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let digits = |n: usize| n.to_string().len();
    let body = key.len() + value.len() + 3;
    let mut length = body + digits(body);
    // The length counts its own digits, which may be one more with them.
    length = body + digits(length);
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn type_flag(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::File => b'0',
        EntryKind::HardLink => b'1',
        EntryKind::Symlink => b'2',
        EntryKind::CharDevice => b'3',
        EntryKind::BlockDevice => b'4',
        EntryKind::Directory => b'5',
        EntryKind::Fifo => b'6',
    }
}

fn is_ascii(text: &[u8]) -> bool {
    text.iter().all(|&b| b.is_ascii() && b != 0)
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|&b| b.is_ascii() && b != 0).collect()
}

pub(crate) fn fits_octal(width: usize, value: i64) -> bool {
    value >= 0 && value < 1 << ((width - 1) * 3)
}

/// What is too long is cut off; a slash at the cut would make readers take the rest for a directory.
fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    if text.len() > field.len() && field.last() == Some(&b'/') {
        let kept = field.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
        field[kept] = 0;
    }
}

/// Zero where the number does not fit: an extended record holds it then.
pub(crate) fn put_octal(field: &mut [u8], value: i64) {
    let value = if fits_octal(field.len(), value) { value } else { 0 };
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    field[..digits.len()].copy_from_slice(digits.as_bytes());
    field[digits.len()] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_for_a_field_is_written_as_go_writes_it() {
        let header = Header {
            kind: EntryKind::File,
            name: b"dir/big".to_vec(),
            link: Vec::new(),
            mode: 0o644,
            uid: 3_000_000,
            gid: (1 << 21) - 1,
            size: 9 << 30,
            mtime: 1_500_000_000,
            device: (0, 0),
            xattrs: Records::new(),
        };
        let mut writer = Writer::new(Vec::new());
        writer.header(&header).unwrap();
        assert!(writer.out[BLOCK..].starts_with(b"19 size=9663676416\n15 uid=3000000\n\0"));
        // Recorded from Go's archive/tar.
        let recorded = "sha256:3c5d803495633c95f71c45635f4f6196d99b461ccd14e99e28b3bdff0878399c";
        assert_eq!(oci::Digest::of(&writer.out).as_str(), recorded);
    }
}
