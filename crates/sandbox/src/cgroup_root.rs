use std::fs;
use std::io;
use std::path::Path;

/// Where cgroup v2 is mounted when there is no other.
const ROOT: &str = "/sys/fs/cgroup";

/// Makes the root of a cgroup v2 namespace fit to have children with limits: moves its processes, of which the daemon is one, into a child
/// `init`, and turns all controllers on. Does nothing under cgroup v1. For a daemon that has a container to itself.
pub fn prepare_cgroup_root() -> io::Result<()> {
    prepare(Path::new(ROOT))
}

fn prepare(root: &Path) -> io::Result<()> {
    let controllers = match fs::read_to_string(root.join("cgroup.controllers")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        controllers => controllers?,
    };
    let init = root.join("init");
    match fs::create_dir(&init) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for pid in fs::read_to_string(root.join("cgroup.procs"))?.lines() {
        if let Err(error) = fs::write(init.join("cgroup.procs"), pid) {
            tracing::warn!(pid, %error, "a process stays in the root cgroup");
        }
    }
    for controller in controllers.split_whitespace() {
        if let Err(error) = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::warn!(controller, %error, "a cgroup controller cannot be turned on");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_move_and_controllers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path()).unwrap();
        assert!(!dir.path().join("init").exists(), "there is no cgroup v2");
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        fs::write(dir.path().join("cgroup.procs"), "17\n").unwrap();
        prepare(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("init/cgroup.procs")).unwrap(), "17");
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(), "+memory");
    }
}
