//! How long a long Dockerfile takes. The bar is the release build's; without optimisation it is only a guard against squares.
//!
//! `cargo test --release -p dockerfile --test speed -- --nocapture` prints the figures.
#![allow(clippy::unwrap_used)]
mod fixed;

use std::time::Duration;

use dockerfile::lint::Linter;
use dockerfile::{Options, convert};
use fixed::{Fixed, PLAIN};
use futures_util::FutureExt as _;

const BAR: Duration = if cfg!(debug_assertions) { Duration::from_millis(1500) } else { Duration::from_millis(20) };
const LINES: usize = 2_000;

/// Forty stages of a project with 50 lines each; each takes files from the last.
fn stages() -> String {
    let mut text = String::from("# syntax=docker/dockerfile:1\nARG VERSION=1.2\n");
    for n in 0..40 {
        text += &format!("FROM debian:$VERSION AS stage{n}\nARG VERSION\nARG MODE=fast\nWORKDIR /src/$VERSION/{n}\n");
        for i in 0..9 {
            text += &format!(
                "ENV KEY_{n}_{i}=\"${{VERSION}}-${{MODE:-slow}}-{i}\"\nCOPY --chown=1:1 pkg/{n}/{i} ./pkg/\nRUN --mount=type=cache,target=/cache/{i} \\\n    make -j4 \\\n    target-{i}\n"
            );
        }
        text += &if n == 0 { "LABEL stage=first\n".to_owned() } else { format!("COPY --from=stage{} /out /out\n", n - 1) };
    }
    text
}

/// One stage, in which every step sees all arguments before it.
fn one_stage() -> String {
    let step = |i: usize| {
        let first = if i.is_multiple_of(8) { format!("ARG V{i}=x") } else { format!("ENV E{}=$V{}", i % 20, i / 8 * 8) };
        format!("{first}\nRUN make step-{i} \"$V{}\"\nCOPY src/{i} /dst/{i}\nLABEL l{i}=$V{}\n", i / 8 * 8, i / 8 * 8)
    };
    std::iter::once("FROM a\n".to_owned()).chain((0..LINES / 4).map(step)).collect()
}

/// Time on the processor, as other programs run beside this one; the best of several, as the first finds cold caches.
fn time(text: &str) -> Duration {
    let options = Options { caps: llb::CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(), ..Options::default() };
    let once = || {
        let start = on_processor();
        let mut linter = Linter::new(Default::default());
        let converted = convert(text.as_bytes(), &options, &Fixed(PLAIN), &mut linter).now_or_never().expect("nothing here has to wait");
        assert!(converted.unwrap().graph.vertices.len() > 100);
        on_processor() - start
    };
    (0..5).map(|_| once()).min().expect("five of them")
}

/// What the kernel has counted for this thread.
fn on_processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn two_thousand_lines_take_milliseconds() {
    for (name, text) in [("forty stages", stages()), ("one stage", one_stage())] {
        let lines = text.lines().count();
        assert!(lines.abs_diff(LINES) < 100, "{lines}");
        let took = time(&text);
        println!("{name}: {lines} lines in {took:?}");
        assert!(took < BAR, "{name}: {lines} lines took {took:?}");
    }
}
