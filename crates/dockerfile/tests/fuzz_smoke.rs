//! No text makes the room panic, hang, or differ from itself: Dockerfiles changed at random, always in the same way.
mod fixed;

use std::time::{Duration, Instant};

use dockerfile::lint::Linter;
use dockerfile::{Options, convert, instruction, syntax};
use fixed::{Fixed, ON_BUILD};

/// How long the loop may run; it ends earlier after enough rounds.
const BUDGET: Duration = Duration::from_secs(5);
/// However long that takes.
const LEAST: usize = 100;
const ROUNDS: usize = 6_000;

const SEEDS: [&str; 4] = [
    "# syntax=x\n# escape=`\nARG A=1 B=${A:-x}\nFROM --platform=$BUILDPLATFORM img:$A AS base\nRUN a `\n  b\nCOPY --link --chown=a:b x* \"y z\" /d/\n",
    "FROM scratch AS a\nRUN <<EOF cat <<-'B'\n\tx $y\nEOF\n\tB\nCOPY <<F --from /x\n${A//a/b}\nF\nADD https://h/x.git#v:d https://h/f?q=1 /\n",
    "FROM a AS b\nRUN --mount=type=cache,target=/a,id=$A,uid=1,mode=0755 --mount=type=secret,id=s,env=E --network=none x \"$E\"\nFROM b\nCOPY --from=b --parents a/./b/*.c /\n",
    "FROM a\nENV a=${b#*x} c=\"${d%%\\}}\" e='f'\nLABEL k v w\nEXPOSE 1-3/udp $X\nVOLUME [\"/a\", \"$b\"]\nHEALTHCHECK --interval=1m CMD [\"x\"]\nONBUILD COPY --from=c x y\nSHELL [\"s\"]\nWORKDIR ../$a\nUSER $u\nSTOPSIGNAL 9\nCMD x\nENTRYPOINT [\"é\"]\nARG z\n",
];

const PIECES: [&str; 30] = [
    "$", "{", "}", "\\", "`", "\"", "'", "\n", "<<", "EOF", "#", "/", "%", "*", "?", "[", "]", ",", "=", "--", ":", "-", " ", "\t", "é",
    "\u{feff}", "FROM a\n", "ONBUILD ", "${x:-", "\\\n",
];

/// xorshift: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// A place between two characters.
    fn cut(&mut self, text: &str) -> usize {
        let mut at = self.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

fn mutate(text: &mut String, random: &mut Random) {
    match random.below(4) {
        0 => {
            let from = random.cut(text);
            let length: usize = text[from..].chars().take(random.below(9)).map(char::len_utf8).sum();
            text.replace_range(from..from + length, "");
        }
        1 => {
            let (a, b) = (random.cut(text), random.cut(text));
            let piece = text[a.min(b)..a.max(b)].to_owned();
            let at = random.cut(text);
            text.insert_str(at, &piece);
        }
        _ => {
            let at = random.cut(text);
            text.insert_str(at, PIECES[random.below(PIECES.len())]);
        }
    }
    text.truncate((0..=4_000.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0));
}

fn outcome(text: &str) -> Result<(Vec<String>, Vec<u8>), String> {
    let options = Options { caps: llb::CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(), ..Options::default() };
    let mut linter = Linter::new(Default::default());
    let converted = futures_util::future::FutureExt::now_or_never(convert(text.as_bytes(), &options, &Fixed(ON_BUILD), &mut linter));
    let converted = converted.expect("nothing here has to wait").map_err(|e| e.to_string())?;
    Ok((converted.graph.vertices.iter().map(|v| v.digest.to_string()).collect(), converted.image.to_bytes()))
}

#[test]
fn survives_random_text() {
    let start = Instant::now();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut rounds, mut built) = (0, 0);
    while rounds < ROUNDS && (rounds <= LEAST || start.elapsed() < BUDGET) {
        let mut text = SEEDS[random.below(SEEDS.len())].to_owned();
        for _ in 0..random.below(12) {
            mutate(&mut text, &mut random);
        }
        let first = outcome(&text);
        built += usize::from(first.is_ok());
        if rounds % 16 == 0 {
            assert_eq!(first, outcome(&text), "{text}");
        }
        rounds += 1;
    }
    assert!(built > rounds / 50, "only {built} of {rounds} build");
}

#[test]
fn long_and_deep_text_ends_soon() {
    let start = Instant::now();
    let deep = format!("FROM a\nENV x={}\n", "${a:-".repeat(3_000));
    let _ = outcome(&deep);
    let wide = format!("FROM a\nENV x={}\n", "${a//*/b}".repeat(3_000));
    let _ = outcome(&wide);
    let stars = format!("FROM a\nENV v={}\nENV x=${{v##{}c}}\n", "ab".repeat(500), "*a".repeat(60));
    let _ = outcome(&stars);
    let stages: String = (0..500).map(|i| format!("FROM s{i} AS s{}\nCOPY --from=s{i} a b\n", i + 1)).collect();
    outcome(&format!("FROM a AS s0\n{stages}")).unwrap();
    assert!(start.elapsed() < Duration::from_secs(300), "took {:?}", start.elapsed());
}

#[test]
fn two_thousand_lines() {
    let mut text = String::from("FROM a AS build\n");
    for i in 0..500 {
        text.push_str(&format!("ARG V{i}=x\nRUN make step-{i} \"$V{i}\"\nCOPY src/{i} /dst/{i}\nLABEL l{i}=$V{i}\n"));
    }
    let document = syntax::parse(text.as_bytes()).unwrap();
    let file = instruction::parse(&document, &Linter::silent()).unwrap();
    assert_eq!(file.stages[0].instructions.len(), 2_000);
    let (vertices, _) = outcome(&text).unwrap();
    // The image, its two triggers, the context, and two steps in four lines.
    assert_eq!(vertices.len(), 1_004);
}
