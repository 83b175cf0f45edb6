//! What every runtime must do alike. Needs root, busybox-static, runc and crun.
#![allow(clippy::unwrap_used, reason = "tests")]
mod files;
mod lives;
mod lockdown;
mod programs;
#[path = "../world/mod.rs"]
mod world;

use std::time::Duration;

use files::*;
use lives::*;
use lockdown::*;
use programs::*;
use sandbox::{Builtin, OciRuntime, Runtime, SandboxError, Settings};
use world::World;

fn builtin(settings: Settings) -> Result<Box<dyn Runtime>, SandboxError> {
    Ok(Box::new(Builtin::new(settings)?))
}

fn external(name: &str, settings: Settings) -> Result<Box<dyn Runtime>, SandboxError> {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    let binary = places.map(|dir| std::path::Path::new(dir).join(name)).into_iter().find(|path| path.exists());
    Ok(Box::new(OciRuntime::new(binary.unwrap_or_else(|| panic!("{name} is installed")), settings)?))
}

macro_rules! suite {
    ($($test:ident)*) => {
        mod with_builtin {
            $(#[tokio::test] async fn $test() { super::bounded(super::$test(super::World::new(super::builtin))).await })*
        }
        mod with_runc {
            $(#[tokio::test] async fn $test() { super::bounded(super::$test(super::World::new(|s| super::external("runc", s)))).await })*
        }
        mod with_crun {
            $(#[tokio::test] async fn $test() { super::bounded(super::$test(super::World::new(|s| super::external("crun", s)))).await })*
        }
    };
}

async fn bounded(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(600), test).await.expect("the test ends");
}

suite! {
    exit_codes_and_streams
    a_program_that_cannot_run
    users
    an_unknown_user_is_named
    environment_and_directory
    a_missing_directory_is_made_for_the_user
    lockdown
    insecure_is_open
    masked_and_frozen_paths
    devices
    a_device_of_its_own
    hosts_and_hostname
    mounts_of_all_kinds
    mount_points_stay_in_the_root
    stubs_are_reported
    a_readonly_root
    no_network
    limits_of_resources
    out_of_memory_is_told
    rlimits
    much_output
    input_is_streamed
    cancelling_kills_the_tree
    dropping_kills_the_tree
    a_cancelled_run_does_not_start
    a_second_process
    further_processes
    a_terminal
    nothing_is_left
    an_emulator_of_its_own
    escapes_are_refused
}

/// Some of the suite once more, where the machine's namespaces belong to somebody else.
#[test]
fn root_of_a_user_namespace_is_enough() {
    let this = std::env::current_exe().unwrap();
    for test in ["exit_codes_and_streams", "a_second_process", "a_terminal", "no_network", "stubs_are_reported", "nothing_is_left"] {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--propagation", "slave"]).arg(&this);
        let output = command.args(["--exact", &format!("with_builtin::{test}")]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{test}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
}
