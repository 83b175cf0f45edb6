//! Docker's default seccomp profile for the default capability set: what a sandboxed step may ask of the kernel.
//!
//! The program is built here and not with a filter library because those compare a call with every rule in turn: at each installation the
//! kernel runs the program once for every call number to learn what is always allowed, and compiles it, and that took longer than all
//! namespaces together. This one decides by binary search over ranges of numbers.
//!
//! As with runc, a call newer than the profile answers ENOSYS, so that C libraries fall back, and so does `clone3`, whose flags lie where
//! a filter cannot see them.
mod numbers;

use numbers::ALLOWED;

use crate::sys::Instruction;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const RET_KILL: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

/// An instruction set as seccomp tells them apart. The discriminant is the column in [`ALLOWED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each machine uses its own")]
pub(crate) enum Arch {
    X86_64 = 0,
    I386 = 1,
    Aarch64 = 2,
    Arm = 3,
    Riscv64 = 4,
}

impl Arch {
    /// What this machine runs: its own and what its kernel runs besides.
    #[cfg(target_arch = "x86_64")]
    const NATIVE: &'static [Arch] = &[Arch::X86_64, Arch::I386];
    #[cfg(target_arch = "aarch64")]
    const NATIVE: &'static [Arch] = &[Arch::Aarch64, Arch::Arm];
    #[cfg(target_arch = "riscv64")]
    const NATIVE: &'static [Arch] = &[Arch::Riscv64];

    fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::I386 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
            Arch::Riscv64 => 0xc000_00f3,
        }
    }

    /// Numbers of the calls whose arguments are looked at.
    fn tested(self) -> [(u32, Verdict); 4] {
        let (socket, personality, clone) = match self {
            Arch::X86_64 => (41, 135, 56),
            Arch::I386 => (359, 136, 120),
            Arch::Arm => (281, 136, 120),
            Arch::Aarch64 | Arch::Riscv64 => (198, 92, 220),
        };
        [(socket, Verdict::Socket), (personality, Verdict::Personality), (clone, Verdict::Clone), (435, Verdict::Unknown)]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Deny,
    /// ENOSYS.
    Unknown,
    /// Any family but AF_ALG and AF_VSOCK.
    Socket,
    /// Only those that change no memory layout.
    Personality,
    /// No new namespace.
    Clone,
}

/// Names of calls that are allowed whatever their arguments, for a runtime that builds its own filter.
pub(crate) fn allowed_names() -> impl Iterator<Item = &'static str> {
    let native = Arch::NATIVE;
    ALLOWED.iter().filter(move |(_, numbers)| native.iter().any(|arch| numbers[*arch as usize] >= 0)).map(|(name, _)| *name)
}

/// The machine's instruction sets, as libseccomp names them.
pub(crate) fn architectures() -> Vec<&'static str> {
    let name = |arch: &Arch| match arch {
        Arch::X86_64 => "SCMP_ARCH_X86_64",
        Arch::I386 => "SCMP_ARCH_X86",
        Arch::Aarch64 => "SCMP_ARCH_AARCH64",
        Arch::Arm => "SCMP_ARCH_ARM",
        Arch::Riscv64 => "SCMP_ARCH_RISCV64",
    };
    Arch::NATIVE.iter().map(name).collect()
}

/// Namespace flags of clone(2).
pub(crate) const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// Allowed arguments of personality(2).
pub(crate) const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The filter for this machine.
pub(crate) fn default_filter() -> Vec<Instruction> {
    filter(Arch::NATIVE)
}

fn filter(arches: &[Arch]) -> Vec<Instruction> {
    let mut program = vec![load(4)];
    for arch in arches {
        let mut block = vec![load(0)];
        decide(&segments(*arch), &mut block);
        program.extend([jump(JEQ, arch.audit(), 1, 0), always(block.len() as u32)]);
        program.extend(block);
    }
    program.push(ret(RET_KILL));
    program
}

/// The verdict over all call numbers: where each range starts, in order, the first at 0.
fn segments(arch: Arch) -> Vec<(u32, Verdict)> {
    let mut known: Vec<(u32, Verdict)> = ALLOWED
        .iter()
        .filter_map(|(_, numbers)| u32::try_from(numbers[arch as usize]).ok())
        .map(|number| (number, Verdict::Allow))
        .chain(arch.tested())
        .collect();
    known.sort_unstable_by_key(|(number, _)| *number);
    known.dedup_by_key(|(number, _)| *number);
    // ARM has private calls far above the common ones.
    let newest = known.iter().map(|(number, _)| *number).filter(|number| *number < 0x1_0000).max().unwrap_or(0);
    // x32 is the same architecture to seccomp, told apart by this bit.
    let (x32, other) = (0x4000_0000, |next: u32| if next <= newest { Verdict::Deny } else { Verdict::Unknown });
    let mut segments: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |start: u32, verdict: Verdict| {
        if segments.last().is_none_or(|(_, last)| *last != verdict) {
            segments.push((start, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in known {
        if number > next {
            push(next, other(next));
        }
        if number > newest && next <= newest {
            push(newest + 1, Verdict::Unknown);
        }
        push(number, verdict);
        next = number + 1;
    }
    push(next, Verdict::Unknown);
    push(x32, Verdict::Deny);
    segments
}

/// Emits a binary search for the call number, which is in the accumulator.
fn decide(segments: &[(u32, Verdict)], out: &mut Vec<Instruction>) {
    if let [(_, verdict)] = segments {
        return emit(*verdict, out);
    }
    let (low, high) = segments.split_at(segments.len() / 2);
    let mut below = Vec::new();
    decide(low, &mut below);
    match u8::try_from(below.len()) {
        Ok(over) => out.push(jump(JGE, high[0].0, over, 0)),
        Err(_) => out.extend([jump(JGE, high[0].0, 0, 1), always(below.len() as u32)]),
    }
    out.append(&mut below);
    decide(high, out);
}

/// Arguments are compared in their low half only: that is all the kernel takes of these.
fn emit(verdict: Verdict, out: &mut Vec<Instruction>) {
    const FIRST_ARGUMENT: u32 = 16;
    match verdict {
        Verdict::Allow => out.push(ret(RET_ALLOW)),
        Verdict::Deny => out.push(ret(RET_ERRNO | EPERM)),
        Verdict::Unknown => out.push(ret(RET_ERRNO | ENOSYS)),
        Verdict::Socket => {
            out.extend([load(FIRST_ARGUMENT), jump(JEQ, 38, 2, 0), jump(JEQ, 40, 1, 0), ret(RET_ALLOW), ret(RET_ERRNO | EPERM)])
        }
        Verdict::Personality => {
            out.push(load(FIRST_ARGUMENT));
            let count = PERSONALITIES.len();
            out.extend(PERSONALITIES.iter().enumerate().map(|(i, value)| jump(JEQ, *value as u32, (count - i) as u8, 0)));
            out.extend([ret(RET_ERRNO | EPERM), ret(RET_ALLOW)]);
        }
        Verdict::Clone => {
            out.extend([load(FIRST_ARGUMENT), jump(JSET, CLONE_NAMESPACES as u32, 0, 1), ret(RET_ERRNO | EPERM), ret(RET_ALLOW)])
        }
    }
}

const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;

fn load(offset: u32) -> Instruction {
    Instruction { code: 0x20, jt: 0, jf: 0, k: offset }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn always(over: u32) -> Instruction {
    Instruction { code: 0x05, jt: 0, jf: 0, k: over }
}

fn ret(value: u32) -> Instruction {
    Instruction { code: 0x06, jt: 0, jf: 0, k: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of a call.
    fn run(program: &[Instruction], arch: Arch, number: u32, argument: u32) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let branch = |taken: bool| usize::from(if taken { jt } else { jf });
            match code {
                0x20 => {
                    a = match k {
                        0 => number,
                        4 => arch.audit(),
                        16 => argument,
                        other => panic!("loads {other}"),
                    }
                }
                JEQ => at += branch(a == k),
                JGE => at += branch(a >= k),
                JSET => at += branch(a & k != 0),
                0x05 => at += k as usize,
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn every_number_gets_what_the_profile_says() {
        for arches in [&[Arch::X86_64, Arch::I386][..], &[Arch::Aarch64, Arch::Arm], &[Arch::Riscv64]] {
            let program = filter(arches);
            assert!(program.len() < 1200, "{} instructions", program.len());
            for arch in arches {
                let allowed: Vec<i32> = ALLOWED.iter().map(|(_, n)| n[*arch as usize]).collect();
                let tested = arch.tested().map(|(number, _)| number);
                for number in (0..600).filter(|n| !tested.contains(n)) {
                    let expected = match number {
                        n if allowed.contains(&(n as i32)) => RET_ALLOW,
                        n if n > 466 => RET_ERRNO | ENOSYS,
                        _ => RET_ERRNO | EPERM,
                    };
                    assert_eq!(run(&program, *arch, number, 0), expected, "{arch:?} {number}");
                }
            }
        }
    }

    #[test]
    fn arguments_decide_where_the_profile_looks_at_them() {
        let program = filter(&[Arch::X86_64, Arch::I386]);
        let allowed = |arch, number, argument| run(&program, arch, number, argument) == RET_ALLOW;
        for (arch, socket, personality, clone) in [(Arch::X86_64, 41, 135, 56), (Arch::I386, 359, 136, 120)] {
            assert!(allowed(arch, socket, 2) && allowed(arch, socket, 39) && allowed(arch, socket, 41));
            assert!(!allowed(arch, socket, 38) && !allowed(arch, socket, 40));
            assert!(allowed(arch, personality, 0x2_0008) && allowed(arch, personality, u32::MAX));
            assert!(!allowed(arch, personality, 0x4_0000));
            assert!(allowed(arch, clone, 0x11) && !allowed(arch, clone, 0x1000_0011));
            assert_eq!(run(&program, arch, 435, 0), RET_ERRNO | ENOSYS);
        }
        // mount(2), and an x32 call
        assert_eq!(run(&program, Arch::X86_64, 165, 0), RET_ERRNO | EPERM);
        assert_eq!(run(&program, Arch::X86_64, 0x4000_0001, 0), RET_ERRNO | EPERM);
        assert_eq!(run(&program, Arch::Aarch64, 0, 0), RET_KILL);
    }

    #[test]
    fn private_calls_of_arm_are_allowed() {
        let program = filter(&[Arch::Aarch64, Arch::Arm]);
        assert_eq!(run(&program, Arch::Arm, 0xf0005, 0), RET_ALLOW);
        assert_eq!(run(&program, Arch::Arm, 0xf0006, 0), RET_ERRNO | ENOSYS);
        assert_eq!(run(&program, Arch::Arm, 0x8000, 0), RET_ERRNO | ENOSYS);
    }
}
