//! Many builds at once that are given up at random moments.
#![allow(clippy::unwrap_used)]
mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use engine::{Census, Options};
use llb::{Builder, Edge, Graph};
use progress::Nowhere;
use session::Group;
use task::Cancel;

/// A small generator of our own: a failing seed can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Steps on steps, of which graphs of the same generation have many in common; every fifth waits at a gate that all share.
fn graph(random: &mut Random, house: &House, generation: usize) -> Arc<Graph> {
    let mut builder = Builder::new();
    let mut all: Vec<Edge> = Vec::new();
    for at in 0..40 {
        let mut inputs: Vec<Edge> = Vec::new();
        for _ in 0..random.below(3).min(at) {
            let input = all[random.below(all.len())].clone();
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        let kind = ["", " by content", " fail"][if random.below(60) == 0 { 2 } else { random.below(2) }];
        let name = format!("{generation}.{at}{kind}");
        if at % 5 == 4 {
            house.fake.gate(&name);
        }
        all.push(step(&mut builder, &name, inputs));
    }
    Arc::new(builder.finish(all.pop()))
}

async fn empty(house: &House) -> Census {
    let wait = async {
        loop {
            let census = house.engine.census().await;
            if census == Census::default() {
                return census;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(120), wait).await {
        Ok(census) => census,
        Err(_) => house.engine.census().await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_that_are_given_up_leave_nothing() {
    let home = Home::new();
    let house = Arc::new(home.open(Options { parallelism: Some(8) }));
    for generation in 0..4 {
        let mut clients = Vec::new();
        for client in 0..100_u64 {
            // Every fourth client has a graph of its own.
            let of = if client % 4 == 0 { client + 1 } else { 1 };
            let graph = graph(&mut Random(((generation as u64 + 1) * 7919 * of) | 1), &house, generation);
            let (house, mut random) = (house.clone(), Random((client + 1) * 104_729 + generation as u64));
            clients.push(task::spawn("client", async move {
                let cancel = Cancel::new();
                let job = house.engine.job("crowd", Arc::new(Nowhere), Group::default(), cancel.clone());
                let build = {
                    let job = job.clone();
                    async move { job.build(graph).await }
                };
                let patience = Duration::from_micros(random.below(60_000) as u64);
                match random.below(3) {
                    // The future is dropped, the job a little later.
                    0 => drop(tokio::time::timeout(patience, build).await),
                    1 => {
                        let build = task::spawn("build", async move { build.await.map(drop) });
                        tokio::time::sleep(patience).await;
                        cancel.cancel("the client left");
                        drop(build.join().await);
                    }
                    // Some are let through their gates and come to an end.
                    _ => {
                        let gates: Vec<_> = house.fake.gates.lock().unwrap().values().cloned().collect();
                        gates.into_iter().for_each(|gate| gate.add_permits(random.below(2)));
                        drop(tokio::time::timeout(patience * 4, build).await);
                    }
                }
            }));
        }
        for client in clients {
            client.join().await.unwrap();
        }
        assert_eq!(empty(&house).await, Census::default(), "generation {generation}");
    }
    // What was cancelled so often works as before.
    let job = house.engine.job("after", Arc::new(Nowhere), Group::default(), Cancel::new());
    job.build(chain(&["one", "two"])).await.unwrap();
    drop(job);
    assert_eq!(empty(&house).await, Census::default());
}
