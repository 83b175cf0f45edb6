//! RPM's own form, "ndb": pages of slots, each of which says where a package's header is.
use std::io::{Read, Seek};

use crate::rpm::RpmError;
use crate::rpm::pages::{Bytes, Order::Little, header_length};

pub(super) const MAGIC: &[u8] = b"RpmP";
const SLOT_MAGIC: &[u8] = b"Slot";
const BLOB_MAGIC: &[u8] = b"BlbS";
const PAGE: usize = 4096;
/// Of a slot, of what is before a header, and the unit that places are counted in.
const BLOCK: usize = 16;
/// As many bytes as two slots are taken by what is said of the file.
const FIRST: usize = 2 * BLOCK;

pub(super) fn each<R: Read + Seek>(mut bytes: Bytes<R>, found: &mut dyn FnMut(&[u8]) -> Result<(), RpmError>) -> Result<(), RpmError> {
    let start = bytes.at(0, FIRST)?;
    if Little.word(&start, 4)? != 0 {
        return Err(RpmError::Damaged("its version is not known"));
    }
    for page in 0..u64::from(Little.word(&start, 12)?) {
        let slots = bytes.at(page * PAGE as u64, PAGE)?;
        for slot in slots[if page == 0 { FIRST } else { 0 }..].chunks_exact(BLOCK) {
            let (package, place) = (Little.word(slot, 4)?, Little.word(slot, 8)?);
            if !slot.starts_with(SLOT_MAGIC) {
                return Err(RpmError::Damaged("a slot is damaged"));
            }
            // Nobody's.
            if package == 0 {
                continue;
            }
            let at = u64::from(place) * BLOCK as u64;
            let head = bytes.at(at, BLOCK)?;
            if !head.starts_with(BLOB_MAGIC) || Little.word(&head, 4)? != package {
                return Err(RpmError::Damaged("a slot points to nothing"));
            }
            let length = header_length(Little.word(&head, 12)?.into())?;
            found(&bytes.at(at + BLOCK as u64, length)?)?;
        }
    }
    Ok(())
}
