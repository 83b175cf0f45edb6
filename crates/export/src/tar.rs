//! Tar headers, byte for byte as Go's `archive/tar` writes them when no format is asked for: ustar where it can say everything, else PAX.
use std::collections::BTreeMap;

const BLOCK: usize = 512;

/// What ends an archive.
pub const TRAILER: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::CharDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// A directory's ends with a slash.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of a file, in bytes; else 0.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    pub link: Vec<u8>,
    /// Major and minor.
    pub device: (u32, u32),
    /// Written as PAX records.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Header {
    pub fn new(name: impl Into<Vec<u8>>, kind: Kind, mode: u32) -> Self {
        let (link, xattrs) = (Vec::new(), BTreeMap::new());
        Self { name: name.into(), kind, mode, uid: 0, gid: 0, size: 0, mtime: 0, link, device: (0, 0), xattrs }
    }

    pub fn file(name: impl Into<Vec<u8>>, mode: u32, size: u64) -> Self {
        Self { size, ..Self::new(name, Kind::File, mode) }
    }

    /// The blocks that go before the entry's data.
    pub fn encode(&self) -> Vec<u8> {
        let split = split_path(&self.name);
        let mut records = self.records(split.is_some());
        records.extend(self.xattrs.iter().map(|(key, value)| ([b"SCHILY.xattr.", key.as_slice()].concat(), value.clone())));
        if records.is_empty() {
            let (prefix, name) = split.unwrap_or((b"", &self.name));
            return self.block(name, prefix, |text| text.to_vec()).to_vec();
        }
        let mut out = pax_entry(&self.name, &records);
        out.extend_from_slice(&self.block(&self.name, b"", ascii));
        out
    }

    /// What does not fit into the fields of a ustar header.
    fn records(&self, split: bool) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut records = BTreeMap::new();
        let mut add = |key: &str, value: &[u8]| records.insert(key.as_bytes().to_vec(), value.to_vec());
        if !split && !fits(&self.name, 100) {
            add("path", &self.name);
        }
        if !fits(&self.link, 100) {
            add("linkpath", &self.link);
        }
        for (key, number, width) in [("uid", u64::from(self.uid), 8), ("gid", u64::from(self.gid), 8), ("size", self.size, 12)] {
            if !fits_octal(number, width) {
                add(key, number.to_string().as_bytes());
            }
        }
        if !u64::try_from(self.mtime).is_ok_and(|t| fits_octal(t, 12)) {
            add("mtime", self.mtime.to_string().as_bytes());
        }
        records
    }

    fn block(&self, name: &[u8], prefix: &[u8], text: impl Fn(&[u8]) -> Vec<u8>) -> [u8; BLOCK] {
        let mut block = Block([0; BLOCK]);
        block.text(0, 100, &text(name));
        block.octal(100, 8, self.mode.into());
        block.octal(108, 8, self.uid.into());
        block.octal(116, 8, self.gid.into());
        block.octal(124, 12, self.size);
        block.octal(136, 12, u64::try_from(self.mtime).unwrap_or(0));
        block.0[156] = self.kind.flag();
        block.text(157, 100, &text(&self.link));
        block.octal(329, 8, self.device.0.into());
        block.octal(337, 8, self.device.1.into());
        block.text(345, 155, prefix);
        block.finish()
    }
}

/// Zeros between an entry's data and the next header.
pub fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

struct Block([u8; BLOCK]);

impl Block {
    fn text(&mut self, at: usize, width: usize, text: &[u8]) {
        let kept = text.len().min(width);
        self.0[at..at + kept].copy_from_slice(&text[..kept]);
        // A cut name must not end in a slash: that would make it a directory.
        if text.len() > width && text[width - 1] == b'/' {
            let end = text[..width - 1].iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
            self.0[at + end] = 0;
        }
    }

    /// What does not fit is 0; a record says it then.
    fn octal(&mut self, at: usize, width: usize, number: u64) {
        let number = if fits_octal(number, width) { number } else { 0 };
        self.text(at, width, format!("{number:0digits$o}", digits = width - 1).as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.text(257, 8, b"ustar\x0000");
        self.text(148, 8, b"        ");
        let sum: u64 = self.0.iter().map(|b| u64::from(*b)).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

fn pax_entry(name: &[u8], records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
    let mut header = ascii(&pax_name(name));
    header.truncate(100);
    while header.ends_with(b"/") {
        header.pop();
    }
    let mut block = Block([0; BLOCK]);
    block.text(0, 100, &header);
    for (at, width, number) in [(100, 8, 0), (108, 8, 0), (116, 8, 0), (124, 12, data.len() as u64), (136, 12, 0)] {
        block.octal(at, width, number);
    }
    block.0[156] = b'x';
    let mut out = block.finish().to_vec();
    out.extend_from_slice(&data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

/// `PaxHeaders.0` put before the last part of a path, as Go's `path.Join` would.
fn pax_name(name: &[u8]) -> Vec<u8> {
    let cut = name.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    let (dir, file) = name.split_at(cut);
    let parts = [dir, b"PaxHeaders.0", file];
    let parts: Vec<&[u8]> = parts.iter().flat_map(|p| p.split(|b| *b == b'/')).filter(|p| !p.is_empty()).collect();
    parts.join(&b'/')
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn fits(text: &[u8], width: usize) -> bool {
    text.len() <= width && text.is_ascii()
}

fn fits_octal(number: u64, width: usize) -> bool {
    number < 1 << (3 * (width - 1))
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| b.is_ascii() && *b != 0).collect()
}

/// Prefix and name of a path that is too long for the name field alone.
fn split_path(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 || !name.is_ascii() {
        return None;
    }
    let end = if name.len() > 156 { 156 } else { name.len() - usize::from(name.ends_with(b"/")) };
    let slash = name[..end].iter().rposition(|b| *b == b'/').filter(|at| *at > 0 && *at <= 155)?;
    let rest = &name[slash + 1..];
    (!rest.is_empty() && rest.len() <= 100).then_some((&name[..slash], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(block: &[u8], at: usize, width: usize) -> &str {
        std::str::from_utf8(&block[at..at + width]).unwrap().trim_end_matches('\0')
    }

    #[test]
    fn a_small_file_is_one_ustar_block() {
        let block = Header { uid: 5, mtime: 0o17, ..Header::file("a/b", 0o644, 8) }.encode();
        assert_eq!(block.len(), 512);
        assert_eq!((field(&block, 0, 100), field(&block, 100, 8), field(&block, 108, 8)), ("a/b", "0000644", "0000005"));
        assert_eq!((field(&block, 124, 12), field(&block, 136, 12), block[156]), ("00000000010", "00000000017", b'0'));
        assert_eq!(&block[257..265], b"ustar\x0000");
        let sum: u32 = block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u32::from(*b) }).sum();
        assert_eq!(field(&block, 148, 8), format!("{sum:06o}\0 "));
    }

    #[test]
    fn long_paths_are_split_and_longer_ones_recorded() {
        let dir = "d".repeat(60);
        let split = Header::file(format!("{dir}/{}", "f".repeat(60)), 0o644, 0).encode();
        assert_eq!((split.len(), field(&split, 345, 155), field(&split, 0, 100)), (512, dir.as_str(), "f".repeat(60).as_str()));

        let name = format!("x/{}", "f".repeat(120));
        let pax = Header::file(name.clone(), 0o644, 0).encode();
        assert_eq!(pax.len(), 1536);
        assert_eq!(field(&pax, 0, 100), &format!("x/PaxHeaders.0/{}", "f".repeat(120))[..100]);
        assert_eq!(field(&pax, 512, 133), format!("132 path={name}\n"));
        assert_eq!(field(&pax, 1024, 100), &name[..100]);
    }

    #[test]
    fn what_does_not_fit_a_field_is_a_record_and_the_field_is_zero() {
        let header = Header {
            uid: 3_000_000,
            mtime: -1,
            xattrs: BTreeMap::from([(b"user.a".to_vec(), b"\0v".to_vec())]),
            ..Header::file("é", 0o600, 1 << 33)
        };
        let out = header.encode();
        assert_eq!(field(&out, 0, 100), "PaxHeaders.0", "nothing is left of the name in ASCII");
        let records = "26 SCHILY.xattr.user.a=\0v\n12 mtime=-1\n11 path=é\n19 size=8589934592\n15 uid=3000000\n";
        assert_eq!(field(&out, 512, 512).trim_end_matches('\0'), records);
        assert_eq!((field(&out, 1024, 100), field(&out, 1024 + 108, 8), field(&out, 1024 + 124, 12)), ("", "0000000", "00000000000"));
    }

    #[test]
    fn a_name_cut_at_a_slash_is_no_directory() {
        let name = format!("é{}/{}", "a".repeat(99), "b".repeat(5));
        let out = Header::file(name, 0o644, 0).encode();
        assert_eq!(field(&out, 1024, 100), "a".repeat(99));
        assert_eq!((padding(0), padding(1), padding(512), padding(513)), (0, 511, 0, 511));
    }
}
