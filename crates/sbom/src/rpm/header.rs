//! A package's header, as the database has it: how many entries, how many bytes of values, the entries (tag, type, place, count), the values.
use crate::rpm::pages::Order;

pub(super) const NAME: u32 = 1000;
pub(super) const VERSION: u32 = 1001;
pub(super) const RELEASE: u32 = 1002;
pub(super) const EPOCH: u32 = 1003;
pub(super) const VENDOR: u32 = 1011;
pub(super) const LICENSE: u32 = 1014;
pub(super) const ARCH: u32 = 1022;
pub(super) const SOURCE: u32 = 1044;

const ENTRY: usize = 16;
const INT32: u32 = 4;
/// One text, several, and one in several languages: the first is what counts.
const TEXTS: [u32; 3] = [6, 8, 9];

pub(super) struct Header<'a> {
    entries: &'a [u8],
    values: &'a [u8],
}

impl<'a> Header<'a> {
    pub fn parse(blob: &'a [u8]) -> Option<Self> {
        let count = Order::Big.word(blob, 0).ok()? as usize;
        let length = Order::Big.word(blob, 4).ok()? as usize;
        let (entries, values) = blob.get(8..)?.split_at_checked(count.checked_mul(ENTRY)?)?;
        Some(Self { entries, values: values.get(..length)? })
    }

    /// Empty texts are none.
    pub fn text(&self, tag: u32) -> Option<String> {
        let (_, value) = self.value(tag).filter(|(kind, _)| TEXTS.contains(kind))?;
        let text = value.split(|byte| *byte == 0).next().filter(|text| !text.is_empty())?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    pub fn number(&self, tag: u32) -> Option<u32> {
        let (_, value) = self.value(tag).filter(|(kind, _)| *kind == INT32)?;
        Order::Big.word(value, 0).ok()
    }

    /// Its type, and the values from it on.
    fn value(&self, tag: u32) -> Option<(u32, &'a [u8])> {
        let word = |entry: &[u8], at| Order::Big.word(entry, at).ok();
        let entry = self.entries.chunks_exact(ENTRY).find(|entry| word(entry, 0) == Some(tag))?;
        Some((word(entry, 4)?, self.values.get(word(entry, 8)? as usize..)?))
    }
}
