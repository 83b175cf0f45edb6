//! A hash table of Berkeley DB: keys are the numbers of packages, values their headers.
use std::io::{Read, Seek};

use crate::rpm::RpmError;
use crate::rpm::pages::{Bytes, Order, header_length};

const MAGIC: u32 = 0x0006_1561;
const PAGE_HEADER: usize = 26;
/// Kinds of pages: of pairs, in the order they came in or sorted, and of a part of a value that is longer than a page.
const UNSORTED: u8 = 2;
const SORTED: u8 = 13;
const OVERFLOW: u8 = 7;
/// Kinds of values: in the page, and on pages of their own.
const HERE: u8 = 1;
const ELSEWHERE: u8 = 3;
/// Under this key is the number that the next package gets.
const NEXT_NUMBER: &[u8] = &[0; 4];

const BROKEN: RpmError = RpmError::Damaged("a page of its table is damaged");

/// Which the file is written in; `None` if it is of another kind.
pub(super) fn order(start: &[u8]) -> Option<Order> {
    [Order::Little, Order::Big].into_iter().find(|order| order.word(start, 12).ok() == Some(MAGIC))
}

pub(super) fn each<R: Read + Seek>(
    mut bytes: Bytes<R>,
    order: Order,
    found: &mut dyn FnMut(&[u8]) -> Result<(), RpmError>,
) -> Result<(), RpmError> {
    let start = bytes.at(0, 512)?;
    let size = order.word(&start, 20)? as usize;
    if !size.is_power_of_two() || !(512..=1 << 16).contains(&size) {
        return Err(RpmError::Damaged("it has no size of pages"));
    }
    if start[24] != 0 {
        return Err(RpmError::Damaged("it is encrypted"));
    }
    let last = order.word(&start, 32)?;
    let mut table = Table { bytes, size, order };
    for number in 1..=last {
        let page = table.page(number)?;
        if page[25] != UNSORTED && page[25] != SORTED {
            continue;
        }
        let mut key: Option<&[u8]> = None;
        for at in 0..order.short(&page, 20)? {
            let item = table.item(&page, at)?;
            match key.take() {
                None => key = Some(item),
                Some([HERE, key @ ..]) if key == NEXT_NUMBER => {}
                Some(_) => found(&table.value(item)?)?,
            }
        }
    }
    Ok(())
}

struct Table<'a, R> {
    bytes: Bytes<'a, R>,
    size: usize,
    order: Order,
}

impl<R: Read + Seek> Table<'_, R> {
    fn page(&mut self, number: u32) -> Result<Vec<u8>, RpmError> {
        self.bytes.at(u64::from(number) * self.size as u64, self.size)
    }

    /// A key or value. They fill a page from its end.
    fn item<'p>(&self, page: &'p [u8], at: usize) -> Result<&'p [u8], RpmError> {
        let place = |at: usize| self.order.short(page, PAGE_HEADER + 2 * at);
        let end = if at == 0 { self.size } else { place(at - 1)? };
        page.get(place(at)?..end).filter(|item| !item.is_empty()).ok_or(BROKEN)
    }

    fn value(&mut self, item: &[u8]) -> Result<Vec<u8>, RpmError> {
        match item[0] {
            HERE => return Ok(item[1..].to_vec()),
            ELSEWHERE => {}
            _ => return Err(BROKEN),
        }
        let (mut next, length) = (self.order.word(item, 4)?, header_length(self.order.word(item, 8)?.into())?);
        let mut value = Vec::new();
        while value.len() < length {
            let page = self.page(next)?;
            let part = self.order.short(&page, 22)?;
            if page[25] != OVERFLOW || part == 0 {
                return Err(BROKEN);
            }
            value.extend_from_slice(page.get(PAGE_HEADER..PAGE_HEADER + part).ok_or(BROKEN)?);
            next = self.order.word(&page, 16)?;
        }
        value.truncate(length);
        Ok(value)
    }
}
