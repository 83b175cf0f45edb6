//! How many files a process of ours may have open.
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. The soft one is low by default only for programs that `select()`, whose sets end at 1,024; ours
/// do not. Returns what it was if it was raised: the programs of others get that back.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let soft = current.filter(|soft| maximum.is_none_or(|hard| *soft < hard))?;
    // Where the kernel allows less than the hard limit says, it stays as it was.
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).ok().map(|()| soft)
}
