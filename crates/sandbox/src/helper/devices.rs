//! Which devices a container may open. It may make any node (layers contain them), so what it may open is the cgroup's to say: a list of
//! rules in cgroup v1, a program in v2.
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::container::DeviceNode;
use crate::defaults::OPEN_DEVICES;
use crate::sys;

/// Sets a v1 devices cgroup up, unless it is already.
pub(crate) fn restrict(dir: &Path, more: &[DeviceNode]) -> io::Result<()> {
    let rules = rules(more);
    let list = fs::read_to_string(dir.join("devices.list"))?;
    if list.lines().count() == rules.len() && rules.iter().all(|rule| list.lines().any(|line| line == rule)) {
        return Ok(());
    }
    fs::write(dir.join("devices.deny"), "a")?;
    rules.iter().try_for_each(|rule| fs::write(dir.join("devices.allow"), rule))
}

fn rules(more: &[DeviceNode]) -> Vec<String> {
    let minor = |minor: Option<u32>| minor.map_or("*".to_owned(), |m| m.to_string());
    let open = OPEN_DEVICES.iter().map(|(major, m)| format!("c {major}:{} rwm", minor(*m)));
    let more = more.iter().map(|node| format!("{} {}:{} {}", if node.block { "b" } else { "c" }, node.major, node.minor, node.access));
    ["c *:* m".to_owned(), "b *:* m".to_owned()].into_iter().chain(open).chain(more).collect()
}

/// The same as a program for v2.
pub(crate) fn program(more: &[DeviceNode]) -> io::Result<OwnedFd> {
    sys::load_device_program(&instructions(more))
}

/// The context is three words: access in the high and type in the low half, major, minor.
fn instructions(more: &[DeviceNode]) -> Vec<u64> {
    const MKNOD: u32 = 1;
    const BLOCK: u32 = 1;
    const CHARACTER: u32 = 2;
    let mut program = vec![load(2, 0), mov(3, 2), alu(SHIFT_RIGHT, 3, 16), alu(AND, 2, 0xffff), load(4, 4), load(5, 8)];
    // Two exits: `allow` right behind a jump over it, `deny` at the end.
    let allow = [alu(MOV, 0, 1), EXIT];
    let mut when = |tests: &[u64]| {
        // A failed test skips the remaining tests and the exit.
        for (i, test) in tests.iter().enumerate() {
            program.push(test | ((tests.len() - 1 - i + allow.len()) as u64) << 16);
        }
        program.extend(allow);
    };
    when(&[unless_equal(3, MKNOD)]);
    for (major, minor) in OPEN_DEVICES {
        let device = [unless_equal(2, CHARACTER), unless_equal(4, major)];
        match minor {
            Some(minor) => when(&[device[0], device[1], unless_equal(5, minor)]),
            None => when(&device),
        }
    }
    for node in more {
        let letters = [('m', 1), ('r', 2), ('w', 4)];
        let forbidden = letters.iter().filter(|(letter, _)| !node.access.contains(*letter)).map(|(_, bit)| bit).sum();
        let kind = if node.block { BLOCK } else { CHARACTER };
        when(&[unless_equal(2, kind), unless_equal(4, node.major), unless_equal(5, node.minor), if_any(3, forbidden)]);
    }
    program.extend([alu(MOV, 0, 0), EXIT]);
    program
}

const MOV: u64 = 0xb7;
const AND: u64 = 0x57;
const SHIFT_RIGHT: u64 = 0x77;
const EXIT: u64 = 0x95;

fn load(to: u64, offset: u64) -> u64 {
    0x61 | to << 8 | 1 << 12 | offset << 16
}

fn mov(to: u64, from: u64) -> u64 {
    0xbf | to << 8 | from << 12
}

fn alu(operation: u64, register: u64, value: u32) -> u64 {
    operation | register << 8 | u64::from(value) << 32
}

fn unless_equal(register: u64, value: u32) -> u64 {
    0x55 | register << 8 | u64::from(value) << 32
}

fn if_any(register: u64, bits: u32) -> u64 {
    0x45 | register << 8 | u64::from(bits) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn more() -> [DeviceNode; 2] {
        let node = |block, major, minor, access: &str| DeviceNode {
            path: String::new(),
            host: "/".into(),
            block,
            major,
            minor,
            mode: 0,
            uid: 0,
            gid: 0,
            access: access.into(),
        };
        [node(false, 226, 128, "rw"), node(true, 8, 1, "r")]
    }

    fn run(kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let (program, context) = (instructions(&more()), [access << 16 | kind, major, minor]);
        let (mut registers, mut at) = ([0u64; 10], 0);
        loop {
            let i = program[at];
            at += 1;
            let (to, from, offset, value) = ((i >> 8 & 15) as usize, (i >> 12 & 15) as usize, (i >> 16 & 0xffff) as usize, i >> 32);
            match i & 0xff {
                0x61 => registers[to] = context[offset / 4].into(),
                0xbf => registers[to] = registers[from],
                MOV => registers[to] = value,
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                0x55 if registers[to] != value => at += offset,
                0x45 if registers[to] & value != 0 => at += offset,
                0x45 | 0x55 => {}
                EXIT => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    #[test]
    fn any_node_may_be_made_and_few_opened() {
        let (block, character) = (1, 2);
        assert!(run(block, 1, 8, 0) && run(character, 1, 1, 1));
        assert!(run(character, 6, 1, 3) && run(character, 2, 136, 77) && run(character, 4, 5, 2));
        assert!(run(character, 6, 226, 128) && run(block, 2, 8, 1));
        assert!(!run(block, 4, 8, 1) && !run(block, 6, 8, 1) && !run(block, 6, 226, 128) && !run(character, 6, 226, 129));
        assert!(!run(block, 2, 8, 0) && !run(block, 2, 1, 3) && !run(character, 2, 1, 1) && !run(character, 6, 10, 229));
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        program(&[]).expect("this test needs root");
        program(&more()).expect("this test needs root");
    }
}
