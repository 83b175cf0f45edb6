//! Programs of other machines: which emulator runs them, and whether it does.
//!
//! A kernel with binfmt_misc in user namespaces (6.7) lets a step have an emulator of its own: the step gets a user namespace with the same
//! ids, and in it a registration that nobody else sees. The host's registrations are neither needed nor touched.
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The first kernel that knows binfmt_misc in user namespaces.
const KERNEL: (u32, u32) = (6, 7);

/// What the kernel tells a machine's programs by, and a program that does nothing but succeed.
#[derive(Debug)]
struct Machine {
    /// As platforms name it.
    architecture: &'static str,
    /// As qemu names it.
    qemu: &'static str,
    /// `e_machine` of the ELF header.
    number: u16,
    /// `e_flags`.
    flags: u32,
    wide: bool,
    big_endian: bool,
    /// exit(0), as it lies in memory.
    exit: &'static [u8],
}

const MACHINES: [Machine; 10] = [
    machine("amd64", "x86_64", 62, 0, true, false, b"\x31\xff\xb8\x3c\x00\x00\x00\x0f\x05"),
    machine("386", "i386", 3, 0, false, false, b"\x31\xdb\xb8\x01\x00\x00\x00\xcd\x80"),
    machine("arm64", "aarch64", 183, 0, true, false, b"\x00\x00\x80\xd2\xa8\x0b\x80\xd2\x01\x00\x00\xd4"),
    machine("arm", "arm", 40, 0x0500_0000, false, false, b"\x00\x00\xa0\xe3\x01\x70\xa0\xe3\x00\x00\x00\xef"),
    machine("riscv64", "riscv64", 243, 0, true, false, b"\x13\x05\x00\x00\x93\x08\xd0\x05\x73\x00\x00\x00"),
    machine("ppc64le", "ppc64le", 21, 2, true, false, b"\x01\x00\x00\x38\x00\x00\x60\x38\x02\x00\x00\x44"),
    machine("s390x", "s390x", 22, 0, true, true, b"\xa7\x29\x00\x00\x0a\x01"),
    machine("mips64le", "mips64el", 8, 0x2000_0000, true, false, b"\xc2\x13\x02\x24\x25\x20\x00\x00\x0c\x00\x00\x00"),
    machine("mips64", "mips64", 8, 0x2000_0000, true, true, b"\x24\x02\x13\xc2\x00\x00\x20\x25\x00\x00\x00\x0c"),
    machine("loong64", "loongarch64", 258, 0x43, true, false, b"\x04\x00\x80\x03\x0b\x74\x81\x03\x00\x00\x2b\x00"),
];

const fn machine(
    architecture: &'static str,
    qemu: &'static str,
    number: u16,
    flags: u32,
    wide: bool,
    big_endian: bool,
    exit: &'static [u8],
) -> Machine {
    Machine { architecture, qemu, number, flags, wide, big_endian, exit }
}

/// A user-mode emulator, for one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emulator {
    /// On the host. It must need no libraries, since the container has none for it.
    pub program: PathBuf,
    /// The architecture it runs, as platforms name it.
    pub architecture: String,
}

impl Emulator {
    /// The emulator of `architecture` in one of these directories, by the names that distributions and BuildKit give it.
    pub fn find(architecture: &str, dirs: &[PathBuf]) -> Option<Self> {
        let machine = by_architecture(architecture)?;
        let names = [format!("qemu-{}-static", machine.qemu), format!("buildkit-qemu-{}", machine.qemu), format!("qemu-{}", machine.qemu)];
        let executable = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        let candidates = dirs.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name)));
        let program = candidates.filter(executable).find(|path| is_static(path))?;
        Some(Self { program: program.canonicalize().ok()?, architecture: architecture.to_owned() })
    }

    /// Whether it runs a program of that machine, which is put into the directory `scratch`.
    pub fn works(&self, scratch: &Path) -> bool {
        by_architecture(&self.architecture).is_some_and(|machine| succeeds(machine, Some(&self.program), scratch))
    }

    /// A line for binfmt_misc's `register`, for the program open under `path`. The kernel keeps it open, and passes on the name by which a
    /// program was called and the rights of setuid programs.
    pub(crate) fn registration(&self, path: &str) -> Option<String> {
        let (magic, mask) = by_architecture(&self.architecture)?.magic();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        Some(format!(":kiln-{}:M::{}:{}:{path}:POCF", self.architecture, hex(&magic), hex(&mask)))
    }
}

/// The name that qemu's packages register for an architecture.
pub fn registered_name(architecture: &str) -> Option<String> {
    by_architecture(architecture).map(|machine| format!("qemu-{}", machine.qemu))
}

/// For which architecture a program is that begins like this, as platforms name it.
pub(crate) fn architecture_of(head: &[u8]) -> Option<&'static str> {
    let fits = |machine: &&Machine| {
        let (magic, mask) = machine.magic();
        head.len() >= magic.len() && head.iter().zip(magic.iter().zip(&mask)).all(|(byte, (magic, mask))| byte & mask == magic & mask)
    };
    MACHINES.iter().find(fits).map(|machine| machine.architecture)
}

/// Whether the kernel runs programs of that machine, itself or by what is registered. One is put into the directory `scratch`.
pub fn kernel_runs(architecture: &str, scratch: &Path) -> bool {
    by_architecture(architecture).is_some_and(|machine| succeeds(machine, None, scratch))
}

/// Whether containers can have emulators of their own on this kernel.
pub fn supported() -> bool {
    let release = rustix::system::uname();
    let mut numbers = release.release().to_str().unwrap_or_default().split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= KERNEL
}

fn by_architecture(architecture: &str) -> Option<&'static Machine> {
    MACHINES.iter().find(|machine| machine.architecture == architecture)
}

/// Without an interpreter of its own, of which its first header would tell.
fn is_static(path: &Path) -> bool {
    use std::io::Read as _;
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    let (Ok(_), Some(b"\x7fELF\x02\x01")) = (read, head.get(..6)) else { return false };
    let at = |offset: usize, len: usize| {
        head.get(offset..offset + len).map_or(0, |b| b.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte)))
    };
    let (table, size, count) = (at(32, 8) as usize, at(54, 2) as usize, at(56, 2) as usize);
    const PT_INTERP: u64 = 3;
    (0..count.min(64)).all(|i| at(table + i * size, 4) != PT_INTERP)
}

/// How long a program may be held by others that are just starting.
const BUSY: Duration = Duration::from_secs(10);

fn succeeds(machine: &Machine, emulator: Option<&Path>, scratch: &Path) -> bool {
    let path = scratch.join(format!("probe-{}", machine.architecture));
    let run = || -> io::Result<bool> {
        fs::write(&path, machine.program())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        let mut command = match emulator {
            Some(emulator) => Command::new(emulator),
            None => Command::new(&path),
        };
        if emulator.is_some() {
            command.arg(&path);
        }
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let patience = Instant::now() + BUSY;
        loop {
            match command.status() {
                // Another thread started a program while this one was written: until that runs it has the file open for writing, too.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                outcome => return Ok(outcome?.success()),
            }
        }
    };
    let outcome = run().unwrap_or(false);
    let _ = fs::remove_file(&path);
    outcome
}

impl Machine {
    fn numbers(&self, value: u64, bytes: usize) -> Vec<u8> {
        let all = if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        if self.big_endian { all[8 - bytes..].to_vec() } else { all[..bytes].to_vec() }
    }

    /// The first bytes of an ELF header, and which of their bits count: not the system's ABI, and executables as well as shared objects.
    fn magic(&self) -> (Vec<u8>, Vec<u8>) {
        let mut magic = b"\x7fELF".to_vec();
        magic.extend([if self.wide { 2 } else { 1 }, if self.big_endian { 2 } else { 1 }, 1]);
        magic.resize(16, 0);
        magic.extend(self.numbers(2, 2));
        magic.extend(self.numbers(self.number.into(), 2));
        let mut mask = vec![0xff; magic.len()];
        mask[7] = 0;
        mask[if self.big_endian { 17 } else { 16 }] = 0xfe;
        (magic, mask)
    }

    /// The smallest ELF executable: one segment that holds the headers and [`Machine::exit`].
    fn program(&self) -> Vec<u8> {
        const BASE: u64 = 0x10_0000;
        let (word, header, entry) = if self.wide { (8, 64, 56) } else { (4, 52, 32) };
        let start = header + entry;
        let size = start + self.exit.len() as u64;
        let mut out = self.magic().0;
        let mut put = |value: u64, bytes: usize| out.extend(self.numbers(value, bytes));
        put(1, 4);
        put(BASE + start, word);
        put(header, word);
        put(0, word);
        put(self.flags.into(), 4);
        for half in [header, entry, 1, 0, 0, 0] {
            put(half, 2);
        }
        const PT_LOAD: u64 = 1;
        const READ_EXECUTE: u64 = 5;
        put(PT_LOAD, 4);
        if self.wide {
            put(READ_EXECUTE, 4);
        }
        for value in [0, BASE, BASE, size, size] {
            put(value, word);
        }
        if !self.wide {
            put(READ_EXECUTE, 4);
        }
        put(0x1000, word);
        out.extend(self.exit);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> &'static str {
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }

    #[test]
    fn this_machine_runs_its_own() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(kernel_runs(own(), scratch.path()));
        assert!(!kernel_runs("pdp11", scratch.path()));
    }

    #[test]
    fn a_program_that_somebody_still_has_open_for_writing_is_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(format!("probe-{}", own()));
        let open = fs::File::create(&path).unwrap();
        let trying = std::thread::spawn({
            let scratch = scratch.path().to_owned();
            move || kernel_runs(own(), &scratch)
        });
        let is_tried = || fs::metadata(&path).map_or(true, |meta| meta.permissions().mode() & 0o100 != 0);
        while !trying.is_finished() && !is_tried() {
            std::thread::yield_now();
        }
        assert_eq!(Command::new(&path).status().unwrap_err().kind(), io::ErrorKind::ExecutableFileBusy);
        drop(open);
        assert!(trying.join().unwrap());
    }

    #[test]
    fn programs_tell_whose_they_are() {
        for machine in &MACHINES {
            assert_eq!(architecture_of(&machine.program()), Some(machine.architecture));
        }
        assert_eq!(architecture_of(b"#!/bin/sh\n"), None);
        assert_eq!(architecture_of(b""), None);
    }

    #[test]
    fn registrations_are_those_that_qemu_documents() {
        let emulator = |architecture: &str| Emulator { program: "/q".into(), architecture: architecture.into() };
        let zeros = "\\x00".repeat(8);
        assert_eq!(
            emulator("arm64").registration("/f").unwrap(),
            format!(
                ":kiln-arm64:M::\\x7f\\x45\\x4c\\x46\\x02\\x01\\x01\\x00{zeros}\\x02\\x00\\xb7\\x00:\
                 {ff}\\x00{ff8}\\xfe\\xff\\xff\\xff:/f:POCF",
                ff = "\\xff".repeat(7),
                ff8 = "\\xff".repeat(8)
            )
        );
        let s390x = emulator("s390x").registration("/f").unwrap();
        assert!(s390x.contains("\\x00\\x02\\x00\\x16:") && s390x.contains("\\xff\\xfe\\xff\\xff:/f"), "{s390x}");
    }

    /// Needs Debian's qemu-user-static.
    #[test]
    fn every_emulator_of_the_package_works() {
        let (dirs, scratch) = (["/usr/bin".into()], tempfile::tempdir().unwrap());
        for machine in &MACHINES {
            let emulator = Emulator::find(machine.architecture, &dirs).unwrap_or_else(|| panic!("no emulator of {}", machine.architecture));
            assert!(emulator.works(scratch.path()), "{emulator:?}");
        }
        assert!(!Emulator { program: "/bin/false".into(), architecture: "arm64".into() }.works(scratch.path()));
    }

    #[test]
    fn only_static_programs_will_do() {
        assert!(!is_static(Path::new("/bin/sh")));
        assert!(is_static(Path::new("/bin/busybox")), "busybox-static is not installed");
    }
}
