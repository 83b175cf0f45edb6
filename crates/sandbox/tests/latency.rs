//! The price of a container. Ignored: figures mean something only for an optimised build on a quiet machine
//! (`cargo test --release -p sandbox --test latency -- --ignored --nocapture`).
#![allow(clippy::unwrap_used, reason = "tests")]
#[allow(dead_code)]
mod world;

use std::time::{Duration, Instant};

use sandbox::{Builtin, Process};
use world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn fifty_containers_one_after_the_other_take_less_than_a_second() {
    let world = World::new(|settings| Ok(Box::new(Builtin::new(settings)?)));
    world.sh("true").await;
    let begun = Instant::now();
    let mut each = Vec::new();
    for _ in 0..50 {
        let container = world.container();
        let begun = Instant::now();
        let outcome = world.run(container, Process::new(["/bin/true"])).await;
        assert_eq!(outcome.exit.code, 0);
        each.push(begun.elapsed());
    }
    let total = begun.elapsed();
    each.sort();
    println!("median {:?}, fastest {:?}, slowest {:?}, fifty {total:?}", each[25], each[0], each[49]);
    assert!(each[25] < Duration::from_millis(5), "median {:?}", each[25]);
    assert!(total < Duration::from_secs(1), "fifty took {total:?}");
}
