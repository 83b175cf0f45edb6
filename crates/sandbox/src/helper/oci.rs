//! Containers made by an OCI runtime.
use std::os::fd::OwnedFd;

use super::cgroup::Cgroups;
use super::{Failed, Outcome};
use crate::link::{Spec, SpecProcess};
use crate::sys::Child;

pub(crate) struct Run {}

pub(crate) fn start(_: &Spec, _: &[u8], _: Option<[OwnedFd; 3]>, _: &Cgroups) -> Outcome<(Run, Child)> {
    Err(Failed::plain("OCI runtimes are not implemented yet"))
}

impl Run {
    pub fn exec(&self, _: u32, _: &SpecProcess, _: Option<[OwnedFd; 3]>) -> Outcome<Child> {
        Err(Failed::plain("OCI runtimes are not implemented yet"))
    }
    pub fn kill(&self) {}
    pub fn oom_killed(&self) -> bool {
        false
    }
    pub fn clean_up(self) {}
}
