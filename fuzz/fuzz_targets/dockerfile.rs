//! Dockerfile text to syntax to LLB, with answers that never change.
#![no_main]
#[path = "../../crates/dockerfile/tests/fixed/mod.rs"]
mod fixed;

use dockerfile::convert::outline;
use dockerfile::lint::Linter;
use dockerfile::{Options, convert};
use fixed::{Fixed, ON_BUILD};
use futures_util::FutureExt as _;
use libfuzzer_sys::fuzz_target;
use llb::Graph;

fuzz_target!(|data: &[u8]| {
    let options = Options { caps: llb::CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(), ..Options::default() };
    let mut linter = Linter::new(Default::default());
    let converted = convert(data, &options, &Fixed(ON_BUILD), &mut linter).now_or_never().expect("nothing here has to wait");
    match converted {
        Ok(converted) => {
            // An empty graph is scratch.
            if !converted.graph.vertices.is_empty() {
                let sent = converted.graph.to_bytes();
                let loaded = Graph::decode(sent).expect("what we make we accept");
                assert_eq!(loaded.vertices.len(), converted.graph.vertices.len());
            }
            let _ = converted.image.to_bytes();
        }
        Err(error) => drop(error.to_string()),
    }
    let all = Options { all_stages: true, ..options };
    let _ = outline(data, &all, &Fixed(ON_BUILD), &mut Linter::silent()).now_or_never().expect("nothing here has to wait");
});
