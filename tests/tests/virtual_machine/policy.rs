//! A policy for SELinux with what a distribution's has for containers, in small: a domain for the system, one for containers, and files that
//! only containers with the same categories may read. Everything that it does not speak of is allowed.
use std::fs;
use std::process::Command;

const RULES: &str = "
(mls true)
(handleunknown allow)
(class process (transition dyntransition))
(class file (read write entrypoint))
(class dir (read))
(classorder (process file dir))
(sensitivity s0)
(sensitivityorder (s0))
(sensitivitycategory s0 (range c0 c1023))
(level low (s0))
(level high (s0 (range c0 c1023)))
(levelrange all (low high))
(levelrange lowest (low low))
(user system_u)
(role system_r)
(role object_r)
(userrole system_u system_r)
(userrole system_u object_r)
(userlevel system_u low)
(userrange system_u all)
(type kernel_t)
(type container_t)
(type container_file_t)
(type file_t)
(type sysfs_t)
(typeattribute domain)
(typeattributeset domain (kernel_t container_t))
(roletype system_r domain)
(roletype object_r container_file_t)
(roletype object_r file_t)
(roletype object_r sysfs_t)
(typeattribute everything)
(typeattributeset everything (kernel_t container_t container_file_t file_t sysfs_t))
(allow kernel_t everything (process (transition dyntransition)))
(allow kernel_t everything (file (read write entrypoint)))
(allow kernel_t everything (dir (read)))
(allow container_t container_t (process (transition dyntransition)))
(allow container_t container_t (file (read write)))
(allow container_t container_t (dir (read)))
(allow container_t container_file_t (file (read write entrypoint)))
(allow container_t container_file_t (dir (read)))
(allow container_t kernel_t (file (read write)))
(allow container_t kernel_t (dir (read)))
(mlsconstrain (file (read write)) (or (dom h1 h2) (eq t1 kernel_t)))
(defaultrange (file dir) target low)
(context kernel (system_u system_r kernel_t all))
(context files (system_u object_r file_t lowest))
(context system (system_u object_r sysfs_t lowest))
(context processes (system_u system_r kernel_t lowest))
(fsuse xattr ext4 files)
(fsuse xattr overlay files)
(fsuse trans tmpfs files)
(fsuse trans devtmpfs files)
(fsuse trans devpts files)
(fsuse trans mqueue files)
(genfscon proc \"/\" processes)
(genfscon sysfs \"/\" system)
(genfscon cgroup \"/\" files)
(genfscon cgroup2 \"/\" files)
";

/// The kernel's first labels, by number.
const SIDS: [&str; 27] = [
    "kernel",
    "security",
    "unlabeled",
    "fs",
    "file",
    "file_labels",
    "init",
    "any_socket",
    "port",
    "netif",
    "netmsg",
    "node",
    "igmp_packet",
    "icmp_socket",
    "tcp_socket",
    "sysctl_modprobe",
    "sysctl",
    "sysctl_fs",
    "sysctl_kernel",
    "sysctl_net",
    "sysctl_net_unix",
    "sysctl_vm",
    "sysctl_dev",
    "kmod",
    "policy",
    "scmp_packet",
    "devnull",
];

/// As the kernel loads it.
pub fn compile() -> Vec<u8> {
    let categories: Vec<String> = (0..1024).map(|number| format!("c{number}")).collect();
    let mut text: String = categories.iter().map(|name| format!("(category {name})\n")).collect();
    text += &format!("(categoryorder ({}))\n{RULES}", categories.join(" "));
    for sid in SIDS {
        let context = if sid == "kernel" { "kernel" } else { "files" };
        text += &format!("(sid {sid})\n(sidcontext {sid} {context})\n");
    }
    text += &format!("(sidorder ({}))\n", SIDS.join(" "));
    let dir = tempfile::tempdir().unwrap();
    let (source, compiled) = (dir.path().join("policy.cil"), dir.path().join("policy"));
    fs::write(&source, text).unwrap();
    let output = Command::new("secilc").args(["-c", "33", "-f", "/dev/null", "-o"]).args([&compiled, &source]).output();
    let output = output.expect("secilc is not installed: run `cargo xtask test`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(compiled).unwrap()
}
