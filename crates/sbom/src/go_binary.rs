//! The modules that a Go program was linked from, as its linker notes them (Go 1.18 and later; `debug/buildinfo` is the format's description).
use crate::lock::{LockError, go};
use crate::package::Package;

const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Before and after the module list, so that it can be told from other text.
const FENCE: usize = 16;
/// In the flags: the strings follow, rather than pointers to them.
const INLINE: u8 = 2;
const HEADER: usize = 32;

/// Where in an ELF file the linker's note is: offset and length. `None` for what is no ELF file, or not from Go.
pub(crate) fn note(read: &mut dyn FnMut(u64, usize) -> std::io::Result<Vec<u8>>) -> std::io::Result<Option<(u64, usize)>> {
    let head = read(0, 64)?;
    let Some(elf) = Elf::of(&head) else { return Ok(None) };
    let sections = read(elf.number(&head, 0x20, 0x28), elf.section * elf.short(&head, 0x30, 0x3c))?;
    let sections: Vec<&[u8]> = sections.chunks_exact(elf.section).collect();
    let place = |section: &[u8]| (elf.number(section, 0x10, 0x18), elf.number(section, 0x14, 0x20) as usize);
    let Some((at, length)) = sections.get(elf.short(&head, 0x32, 0x3e)).map(|section| place(section)) else { return Ok(None) };
    let names = read(at, length.min(1 << 20))?;
    let is_note = |section: &&&[u8]| names.get(elf.word(section, 0) as usize..).is_some_and(|name| name.starts_with(b".go.buildinfo\0"));
    Ok(sections.iter().find(is_note).map(|section| place(section)))
}

/// The layout of a file of this class; little-endian ones only, which all of Go's but s390x are.
struct Elf {
    wide: bool,
    /// Bytes of a section header.
    section: usize,
}

impl Elf {
    fn of(head: &[u8]) -> Option<Self> {
        match (head.get(..4)?, head.get(4)?, head.get(5)?) {
            (b"\x7fELF", 1, 1) => Some(Self { wide: false, section: 40 }),
            (b"\x7fELF", 2, 1) if head.len() >= 64 => Some(Self { wide: true, section: 64 }),
            _ => None,
        }
    }

    /// An address-sized number, whose place differs by class.
    fn number(&self, from: &[u8], narrow: usize, wide: usize) -> u64 {
        match self.wide {
            true => from.get(wide..wide + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes"))),
            false => self.word(from, narrow).into(),
        }
    }

    fn word(&self, from: &[u8], at: usize) -> u32 {
        from.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")))
    }

    fn short(&self, from: &[u8], narrow: usize, wide: usize) -> usize {
        let at = if self.wide { wide } else { narrow };
        from.get(at..at + 2).map_or(0, |b| u16::from_le_bytes(b.try_into().expect("two bytes")).into())
    }
}

/// The modules of a note.
pub(crate) fn parse(note: &[u8]) -> Result<Vec<Package>, LockError> {
    let wrong = |what| LockError::Form { what };
    let flags = note.get(15).filter(|_| note.starts_with(MAGIC)).ok_or(wrong("note of Go's linker"))?;
    if flags & INLINE == 0 {
        return Err(wrong("note of a linker before Go 1.18"));
    }
    let rest = &mut note.get(HEADER..).unwrap_or_default();
    let version = string(rest).ok_or(wrong("Go version"))?;
    let modules = string(rest).ok_or(wrong("list of modules"))?;
    let version = String::from_utf8_lossy(version);
    let version = version.split_whitespace().next().unwrap_or_default();
    let mut found: Vec<Package> = version.strip_prefix("go").map(|version| Package::new("golang", "stdlib", version)).into_iter().collect();
    if let Some(text) = modules.get(FENCE..modules.len().saturating_sub(FENCE)) {
        found.extend(listed(&String::from_utf8_lossy(text)));
    }
    Ok(found)
}

/// Lines of a word, a module and its version, divided by tabs; `=>` replaces the one before.
fn listed(text: &str) -> Vec<Package> {
    let mut found: Vec<Package> = Vec::new();
    for line in text.lines() {
        let mut words = line.split('\t');
        let (Some(kind @ ("mod" | "dep" | "=>")), Some(module), version) = (words.next(), words.next(), words.next()) else { continue };
        if kind == "=>" {
            found.pop();
        }
        found.push(go::module(module, version.unwrap_or_default()));
    }
    found
}

/// A length in seven-bit groups, lowest first, and so many bytes.
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let (text, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::package::purl;

    pub fn linkers_note(version: &str, modules: &str) -> Vec<u8> {
        let mut note = [MAGIC, &[8, INLINE], &[0; 16]].concat();
        let fenced = [&[b'x'; FENCE][..], modules.as_bytes(), &[b'y'; FENCE]].concat();
        for text in [version.as_bytes(), &fenced] {
            let length = text.len();
            note.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
            note.extend(text);
        }
        note
    }

    /// An ELF file with a note, as the linker lays it out: header, note, names, section headers.
    pub fn program(note: &[u8]) -> Vec<u8> {
        let names = b"\0.go.buildinfo\0.shstrtab\0";
        let (note_at, names_at) = (64, 64 + note.len());
        let sections_at = names_at + names.len();
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[0x28..0x30].copy_from_slice(&(sections_at as u64).to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&2u16.to_le_bytes());
        file.extend(note);
        file.extend(names);
        for (name, at, length) in [(0u32, 0usize, 0usize), (1, note_at, note.len()), (15, names_at, names.len())] {
            let mut section = vec![0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            section[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            file.extend(section);
        }
        file
    }

    fn find(file: &[u8]) -> Option<(u64, usize)> {
        note(&mut |at, length| Ok(file.iter().skip(at as usize).take(length).copied().collect())).unwrap()
    }

    #[test]
    fn modules_are_read_from_the_linkers_note() {
        let modules = "path\texample.com/cmd\nmod\texample.com/cmd\tv1.2.0\th1:x=\ndep\tgithub.com/a/B\tv0.1.0\n\
                       =>\tgithub.com/fork/b\tv0.1.1\th1:y=\nbuild\t-compiler=gc\n";
        let note = linkers_note("go1.22.3 X:nocoverage", modules);
        let file = program(&note);
        let (at, length) = find(&file).unwrap();
        let found = parse(&file[at as usize..][..length]).unwrap();
        let urls: Vec<String> = found.iter().map(purl).collect();
        assert_eq!(urls, ["pkg:golang/stdlib@1.22.3", "pkg:golang/example.com/cmd@v1.2.0", "pkg:golang/github.com/fork/b@v0.1.1"]);
    }

    #[test]
    fn other_files_and_broken_notes_are_told_apart() {
        assert_eq!(find(b"#!/bin/sh\n"), None);
        assert_eq!(find(b"\x7fELF\x02\x01"), None);
        let file = program(b"x");
        for cut in [63, 64, 70, file.len() - 70, file.len() - 1] {
            find(&file[..cut]);
        }
        assert!(parse(b"").is_err() && parse(&linkers_note("go1", "")[..40]).is_err());
        let mut endless = linkers_note("go1", "");
        endless[HEADER..HEADER + 3].fill(0xff);
        assert!(parse(&endless).is_err());
    }
}
