//! In a program of its own: it looks for its children, of which there must be no others.
#![allow(clippy::unwrap_used, reason = "tests")]
#[allow(dead_code)]
mod world;

use rustix::process::{Pid, Signal, kill_process};
use sandbox::Builtin;
use world::World;

#[tokio::test]
async fn another_helper_is_started_if_it_dies() {
    let world = World::new(|settings| Ok(Box::new(Builtin::new(settings)?)));
    assert_eq!(world.sh("exit 3").await.exit.code, 3);
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    // A thread may end in between.
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<i32> = lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect();
    let [zygote] = children[..] else { panic!("{children:?}") };
    kill_process(Pid::from_raw(zygote).unwrap(), Signal::KILL).unwrap();
    let dead = || std::fs::read_to_string(format!("/proc/{zygote}/stat")).unwrap().contains(") Z ");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !dead() {
        assert!(std::time::Instant::now() < deadline, "it does not die");
        tokio::task::yield_now().await;
    }
    assert_eq!(world.sh("exit 4").await.exit.code, 4);
}
