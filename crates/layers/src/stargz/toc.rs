//! The table of contents.
use std::collections::BTreeMap;

use oci::Timestamp;
use serde::Serialize;

use crate::tar::{Entry, EntryKind};

#[derive(Default)]
pub struct Toc {
    entries: Vec<Item>,
}

struct Item {
    json: Json,
    /// The number of the member that its data is.
    member: Option<usize>,
}

/// One piece of a file.
pub struct Chunk {
    pub member: usize,
    /// Where in the file it begins.
    pub offset: u64,
    /// How long it is, if the file goes on behind it.
    pub size: u64,
    pub digest: String,
}

/// In the order, and with the omissions, of stargz-snapshotter's. Names of owners, which that repeats from the archive, are left out: layers of ours have none.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    modified: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    /// In base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Toc {
    /// Adds an entry with the pieces of its data. `digest` is that of all of them, for a regular file.
    pub fn add(&mut self, entry: &Entry, digest: String, chunks: Vec<Chunk>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let kind = match entry.kind {
            EntryKind::File => "reg",
            EntryKind::HardLink => "hardlink",
            EntryKind::Symlink => "symlink",
            EntryKind::CharDevice => "char",
            EntryKind::BlockDevice => "block",
            EntryKind::Directory => "dir",
            EntryKind::Fifo => "fifo",
        };
        let is_link = matches!(entry.kind, EntryKind::HardLink | EntryKind::Symlink);
        let first = Json {
            name: text(&entry.name),
            kind,
            size: if entry.kind == EntryKind::File { entry.size } else { 0 },
            modified: modified(entry.mtime),
            link_name: if is_link { text(&entry.link) } else { String::new() },
            mode: entry.mode.into(),
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            dev_major: entry.device.0.into(),
            dev_minor: entry.device.1.into(),
            xattrs: entry.xattrs.iter().map(|(key, value)| (text(key), base64(value))).collect(),
            digest,
            ..Json::default()
        };
        let mut next = Some(first);
        for chunk in chunks {
            let more = || Json { name: text(&entry.name), kind: "chunk", ..Json::default() };
            let json =
                Json { chunk_offset: chunk.offset, chunk_size: chunk.size, chunk_digest: chunk.digest, ..next.take().unwrap_or_else(more) };
            self.entries.push(Item { json, member: Some(chunk.member) });
        }
        self.entries.extend(next.map(|json| Item { json, member: None }));
    }

    /// Says where the members lie.
    pub fn place(&mut self, offsets: &[u64]) {
        for item in &mut self.entries {
            item.json.offset = item.member.map_or(0, |member| offsets[member]);
        }
    }

    /// As Go's encoder indents it by tabs.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Whole<'a> {
            version: u32,
            entries: Vec<&'a Json>,
        }
        oci::gojson::to_vec_tabs(&Whole { version: 1, entries: self.entries.iter().map(|item| &item.json).collect() })
    }
}

/// Rounded to seconds; nothing for the beginning of time.
fn modified((seconds, nanos): (i64, u32)) -> String {
    if seconds == 0 {
        return String::new();
    }
    Timestamp::from_unix(seconds + i64::from(nanos >= 500_000_000), 0).utc().to_string()
}

fn base64(data: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(data)
}
