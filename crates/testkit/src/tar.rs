use std::collections::BTreeMap;

/// Writes a plain ustar archive.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, b'5', mode, "", b"")
    }

    pub fn file(self, path: &str, mode: u32, data: impl AsRef<[u8]>) -> Self {
        self.entry(path, b'0', mode, "", data.as_ref())
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, b'2', 0o777, target, b"")
    }

    /// Any entry; `path` and `link` are at most 100 bytes.
    pub fn entry(mut self, path: &str, kind: u8, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        assert!(path.len() <= 100 && link.len() <= 100, "fixture names are short");
        put(0, path.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", data.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// One entry of an archive that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, of the plain header.
    pub mtime: i64,
    pub link: String,
    pub data: Vec<u8>,
}

/// Reads an archive into its entries by name (without a trailing slash); PAX paths and links are honoured.
pub fn read_tar(mut bytes: &[u8]) -> BTreeMap<String, TarEntry> {
    let mut entries = BTreeMap::new();
    let mut pax: BTreeMap<String, String> = BTreeMap::new();
    while bytes.len() >= 512 && bytes[..512].iter().any(|&b| b != 0) {
        let header = &bytes[..512];
        let text = |from: usize, to: usize| {
            let field = &header[from..to];
            String::from_utf8_lossy(&field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]).into_owned()
        };
        let octal = |from: usize, to: usize| u64::from_str_radix(text(from, to).trim(), 8).unwrap_or(0);
        let size = pax.get("size").and_then(|s| s.parse().ok()).unwrap_or(octal(124, 136)) as usize;
        let data = bytes[512..512 + size].to_vec();
        bytes = &bytes[512 + size.next_multiple_of(512)..];
        let kind = header[156];
        if kind == b'x' {
            pax = read_pax(&data);
            continue;
        }
        if kind == b'g' {
            continue;
        }
        let prefix = text(345, 500);
        let name = if prefix.is_empty() { text(0, 100) } else { format!("{prefix}/{}", text(0, 100)) };
        let name = pax.remove("path").unwrap_or(name);
        let link = pax.remove("linkpath").unwrap_or_else(|| text(157, 257));
        pax.clear();
        let (mode, uid, gid) = (octal(100, 108) as u32, octal(108, 116) as u32, octal(116, 124) as u32);
        entries.insert(name.trim_end_matches('/').to_owned(), TarEntry { kind, mode, uid, gid, mtime: octal(136, 148) as i64, link, data });
    }
    entries
}

fn read_pax(mut data: &[u8]) -> BTreeMap<String, String> {
    let mut records = BTreeMap::new();
    while let Some(space) = data.iter().position(|&b| b == b' ') {
        let length: usize = std::str::from_utf8(&data[..space]).ok().and_then(|s| s.parse().ok()).expect("a PAX record has a length");
        let record = String::from_utf8_lossy(&data[space + 1..length - 1]).into_owned();
        if let Some((key, value)) = record.split_once('=') {
            records.insert(key.to_owned(), value.to_owned());
        }
        data = &data[length..];
    }
    records
}
