//! kiln on another kernel than this machine's: Debian 12's (Linux 6.1), with AppArmor or SELinux, and with cgroups of either version.
//!
//! Each test boots that kernel under qemu, which needs neither KVM nor network, and runs one of the scripts beside this file in it as the
//! first process; see `machine.rs`. A script says `ok NAME` or `not ok NAME` for each of its checks.
//!
//! Needs Debian's qemu-system-x86, busybox-static, e2fsprogs, apparmor, secilc, runc, crun, and the unpacked kernel package that
//! `KILN_TEST_KERNEL` names; `cargo xtask test` sees to all of them.
#![allow(clippy::unwrap_used)]
mod machine;
mod policy;

use machine::Machine;

#[test]
fn apparmor_confines_steps_and_cgroups_of_the_second_version_limit_them() {
    let machine = Machine::new("apparmor=1 security=apparmor");
    for program in ["/sbin/apparmor_parser", "runc", "crun"] {
        machine.install(program);
    }
    machine.run(include_str!("apparmor.sh")).all_well(&[
        "a profile that is not loaded is named",
        "steps are in the profile",
        "insecure steps are not",
        "runc is told",
        "crun is told",
        "limits of version 2",
        "out of memory is said",
        "users without namespaces are told why",
        "an ordinary user builds",
    ]);
}

#[test]
fn selinux_labels_steps_and_cgroups_of_the_first_version_limit_them() {
    let machine = Machine::new("security=selinux enforcing=0");
    for program in ["runc", "crun"] {
        machine.install(program);
    }
    machine.file("/policy", &policy::compile());
    machine.run(include_str!("selinux.sh")).all_well(&[
        "without a policy it is not available",
        "without contexts the package is named",
        "steps have labels of their own",
        "the policy is enforced",
        "caches are shared",
        "insecure steps are the daemon's",
        "layers have no labels",
        "runc is told",
        "crun is told",
        "limits of version 1",
        "out of memory is said",
        "limits of version 1 beside an empty version 2",
    ]);
}
