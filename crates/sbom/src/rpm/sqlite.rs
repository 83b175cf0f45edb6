//! The one table of an SQLite database that holds packages (<https://www.sqlite.org/fileformat2.html>).
use std::io::{Read, Seek};

use crate::rpm::RpmError;
use crate::rpm::pages::{Bytes, Order::Big, header_length};

pub(super) const MAGIC: &[u8] = b"SQLite format 3\0";
const TABLE: &[u8] = b"Packages";
/// Of the first page, before what every page has.
const FILE_HEADER: usize = 100;
/// Kinds of pages of tables: with pages below them, and with rows.
const INTERIOR: u8 = 5;
const LEAF: u8 = 13;

/// More are not looked at.
const MOST_COLUMNS: usize = 4;

const BROKEN: RpmError = RpmError::Damaged("a page of its table is damaged");

type Row<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), RpmError>;

/// Hands over the header of every package.
pub(super) fn each<R: Read + Seek>(mut bytes: Bytes<R>, found: Row) -> Result<(), RpmError> {
    let start = bytes.at(0, FILE_HEADER)?;
    // The largest size does not fit and is written as 1.
    let size = match Big.short(&start, 16)? {
        1 => 1 << 16,
        size => size,
    };
    let usable = size.saturating_sub(start[20].into());
    if !size.is_power_of_two() || usable < 480 {
        return Err(RpmError::Damaged("it has no size of pages"));
    }
    let mut file = Database { bytes, size, usable };
    let mut root = None;
    file.rows(1, &mut |row| {
        let columns = columns(row).ok_or(BROKEN)?;
        if let [b"table", name, _, page] = columns.as_slice()
            && *name == TABLE
        {
            root = Some(page.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)));
        }
        Ok(())
    })?;
    let root = root.ok_or(RpmError::Damaged("it has no table of packages"))?;
    // The number of the row, which is not stored a second time, and the header.
    file.rows(root, &mut |row| found(columns(row).and_then(|columns| columns.get(1).copied()).ok_or(BROKEN)?))
}

struct Database<'a, R> {
    bytes: Bytes<'a, R>,
    size: usize,
    /// Of each page.
    usable: usize,
}

impl<R: Read + Seek> Database<'_, R> {
    /// In their order.
    fn rows(&mut self, root: u32, found: Row) -> Result<(), RpmError> {
        let mut waiting = vec![root];
        while let Some(number) = waiting.pop() {
            let page = self.page(number)?;
            let start = if number == 1 { FILE_HEADER } else { 0 };
            let kind = page[start];
            let length = if kind == INTERIOR { 12 } else { 8 };
            let cells = (0..Big.short(&page, start + 3)?).map(|at| Big.short(&page, start + length + 2 * at));
            match kind {
                INTERIOR => {
                    let mut below = cells.map(|cell| Big.word(&page, cell?)).collect::<Result<Vec<u32>, _>>()?;
                    below.push(Big.word(&page, start + 8)?);
                    waiting.extend(below.into_iter().rev());
                    self.bytes.expect(waiting.len() as u64 * self.size as u64)?;
                }
                LEAF => {
                    let mut room = self.usable;
                    for cell in cells {
                        let row = self.row(page.get(cell?..).ok_or(BROKEN)?, &mut room)?;
                        found(&row)?;
                    }
                }
                _ => return Err(BROKEN),
            }
        }
        Ok(())
    }

    /// A row begins in its page, and goes on in others if it is long. All rows of a page share its room.
    fn row(&mut self, cell: &[u8], room: &mut usize) -> Result<Vec<u8>, RpmError> {
        let (length, rest) = varint(cell).ok_or(BROKEN)?;
        let (_, rest) = varint(rest).ok_or(BROKEN)?;
        let length = header_length(length)?;
        let (most, least) = (self.usable - 35, (self.usable - 12) * 32 / 255 - 23);
        let here = match length {
            _ if length <= most => length,
            _ => Some(least + (length - least) % (self.usable - 4)).filter(|here| *here <= most).unwrap_or(least),
        };
        *room = room.checked_sub(here).ok_or(BROKEN)?;
        let mut row = rest.get(..here).ok_or(BROKEN)?.to_vec();
        let mut next = if here < length { Big.word(rest, here)? } else { 0 };
        while row.len() < length {
            let page = self.page(next)?;
            next = Big.word(&page, 0)?;
            let wanted = (length - row.len()).min(self.usable - 4);
            row.extend_from_slice(&page[4..4 + wanted]);
        }
        Ok(row)
    }

    /// They are numbered from 1.
    fn page(&mut self, number: u32) -> Result<Vec<u8>, RpmError> {
        let before = number.checked_sub(1).ok_or(BROKEN)?;
        self.bytes.at(u64::from(before) * self.size as u64, self.size)
    }
}

/// The first values of a row as they are stored; numbers have their most significant byte first.
fn columns(row: &[u8]) -> Option<Vec<&[u8]>> {
    let (length, rest) = varint(row)?;
    let length = usize::try_from(length).ok()?;
    let (mut types, mut values) = (row.get(row.len() - rest.len()..length)?, row.get(length..)?);
    let mut columns = Vec::new();
    while !types.is_empty() && columns.len() < MOST_COLUMNS {
        let (kind, rest) = varint(types)?;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => (kind - 12) / 2,
        };
        let (value, after) = values.split_at_checked(usize::try_from(length).ok()?)?;
        columns.push(value);
        (types, values) = (rest, after);
    }
    Some(columns)
}

/// Seven bits of each byte, and all of the ninth.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (at, byte) in bytes.iter().enumerate().take(9) {
        if at == 8 {
            return Some((number << 8 | u64::from(*byte), &bytes[9..]));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::varint;

    #[test]
    fn numbers_have_as_many_bytes_as_they_need() {
        assert_eq!(varint(&[0x7f, 1]), Some((127, &[1][..])));
        assert_eq!(varint(&[0x81, 0x00]), Some((128, &[][..])));
        assert_eq!(varint(&[0xff; 9]), Some((u64::MAX, &[][..])));
        assert_eq!((varint(&[0xff; 8]), varint(&[])), (None, None));
    }
}
