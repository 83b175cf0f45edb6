use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian has its programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An ordinary user with a home and a copy of kiln in it.
///
/// Needs root, to become such a user and to give it a name and subordinate ids, which it has in a mount namespace of each command only.
pub struct User {
    home: tempfile::TempDir,
}

impl User {
    /// Nobody's on this machine.
    pub const ID: u32 = 54_321;

    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("kiln-rootless").tempdir().unwrap();
        copy_program(&crate::kiln_binary(), &home.path().join("kiln"));
        fs::write(home.path().join("ids"), "somebody:200000:65536\n").unwrap();
        let passwd = fs::read_to_string("/etc/passwd").unwrap() + &format!("somebody:x:{id}:{id}::/:/bin/sh\n", id = Self::ID);
        fs::write(home.path().join("passwd"), passwd).unwrap();
        // Where no user has any subordinate ids yet the files may be missing; they are made empty, which means the same.
        for file in ["/etc/subuid", "/etc/subgid"] {
            drop(fs::OpenOptions::new().append(true).create(true).open(file).unwrap());
        }
        let user = Self { home };
        for name in ["", "kiln", "ids", "passwd"] {
            user.own(&user.path(name));
        }
        fs::set_permissions(user.path("kiln"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(user.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        user
    }

    /// A path in its home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Makes it the owner.
    pub fn own(&self, path: &Path) {
        std::os::unix::fs::chown(path, Some(Self::ID), Some(Self::ID)).unwrap();
    }

    /// A command that executes its arguments as the user, at home, with subordinate ids (or with none, as if it had never been given any).
    pub fn command(&self, subordinate: bool) -> Command {
        let ids = if subordinate { self.path("ids") } else { "/dev/null".into() };
        let privileged =
            r#"mount --bind "$1" /etc/subuid && mount --bind "$1" /etc/subgid && mount --bind passwd /etc/passwd && shift && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", privileged, "sh"]).arg(ids);
        command.args(["setpriv", &format!("--reuid={}", Self::ID), &format!("--regid={}", Self::ID), "--clear-groups"]);
        command.current_dir(self.home.path()).env_clear().env("PATH", PATH);
        command.env("HOME", self.home.path()).env("USER", "somebody");
        command
    }
}

impl Default for User {
    fn default() -> Self {
        Self::new()
    }
}

/// By another process: while one with several threads has a program open for writing, a child that another thread is about to make may
/// have it, too, and then it cannot be executed.
pub fn copy_program(from: &Path, to: &Path) {
    let output = Command::new("cp").args([from, to]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
