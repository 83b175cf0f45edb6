//! A virtual machine for one run of one script.
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the kernel has as modules of what every run needs.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "overlay"];
/// Far above what a run takes, on a machine that is busy with other tests too.
const BOUND: &str = "1800";

pub struct Machine {
    dir: tempfile::TempDir,
    arguments: &'static str,
}

/// What a machine has printed.
pub struct Console(String);

impl Machine {
    /// With busybox and kiln; `arguments` are the kernel's.
    pub fn new(arguments: &'static str) -> Self {
        let machine = Self { dir: tempfile::Builder::new().prefix("kiln-machine-").tempdir().unwrap(), arguments };
        for dir in ["bin", "usr", "proc", "sys", "dev", "tmp", "etc", "var", "data", "root"] {
            fs::create_dir_all(machine.root().join(dir)).unwrap();
        }
        symlink("../bin", machine.root().join("usr/bin")).unwrap();
        machine.install("busybox");
        machine.install(testkit::kiln_binary().to_str().unwrap());
        machine
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A program of this machine's, by name or path, with the libraries that it is linked to.
    pub fn install(&self, program: &str) {
        let path = std::env::var_os("PATH").unwrap();
        let program = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
        let program = program.expect("a program that a test of the virtual machine needs is not installed: run `cargo xtask test`");
        self.copy(&program, &Path::new("/bin").join(program.file_name().unwrap()));
        // It fails for a static one, and says nothing then.
        let libraries = Command::new("ldd").arg(&program).stderr(Stdio::null()).output().unwrap().stdout;
        for library in String::from_utf8(libraries).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
            self.copy(Path::new(library), Path::new(library));
        }
    }

    fn copy(&self, from: &Path, to: &Path) {
        self.file(to.to_str().unwrap(), &fs::read(from).unwrap());
    }

    /// A file for everybody to read and execute.
    pub fn file(&self, path: &str, content: &[u8]) {
        let path = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Boots, runs the script, and ends with it.
    pub fn run(self, script: &str) -> Console {
        self.file("/init", [include_str!("common.sh"), script, "\nfinish\n"].concat().as_bytes());
        let disk = self.dir.path().join("disk");
        fs::File::create(&disk).unwrap().set_len(1 << 30).unwrap();
        ok(Command::new("mke2fs").args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(self.root()).arg(&disk));
        let kernel = Kernel::find();
        let initrd = self.first_stage(&kernel);
        let output = Command::new("timeout")
            .args([BOUND, "qemu-system-x86_64", "-M", "pc", "-cpu", "max", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-monitor", "none", "-append"])
            .arg(format!("console=ttyS0 quiet panic=-1 mitigations=off {}", self.arguments))
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu ended with {}:\n{said}", output.status);
        Console(said)
    }

    /// The archive that the kernel starts in: it loads the modules and goes on on the disk, where a root can be exchanged for another.
    fn first_stage(&self, kernel: &Kernel) -> PathBuf {
        let dir = self.dir.path().join("initrd");
        for name in ["proc", "dev", "disk"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::copy(self.root().join("bin/busybox"), dir.join("busybox")).unwrap();
        let mut script = "#!/busybox sh\n/busybox mount -t devtmpfs dev /dev\n".to_owned();
        for module in kernel.in_order(&MODULES) {
            let name = module.file_name().unwrap();
            fs::copy(&module, dir.join(name)).unwrap();
            script += &format!("/busybox insmod /{}\n", name.display());
        }
        script += "until /busybox mount -t ext4 /dev/vda /disk; do /busybox usleep 10000; done\nexec /busybox switch_root /disk /init\n";
        fs::write(dir.join("init"), script).unwrap();
        fs::set_permissions(dir.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
        let archive = self.dir.path().join("initrd.cpio");
        let mut cpio = Command::new("busybox");
        cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(&dir).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut cpio = cpio.stdout(fs::File::create(&archive).unwrap()).spawn().unwrap();
        let names: String = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap() + "\n").collect();
        cpio.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
        assert!(cpio.wait().unwrap().success());
        archive
    }
}

impl Console {
    /// Every one of these checks was made, and none failed.
    pub fn all_well(&self, checks: &[&str]) {
        let lines: Vec<&str> = self.0.lines().map(str::trim).collect();
        let missing: Vec<_> = checks.iter().filter(|check| !lines.contains(&format!("ok {check}").as_str())).collect();
        let failed = lines.iter().any(|line| line.starts_with("not ok "));
        assert!(missing.is_empty() && !failed, "not made, or failed: {missing:?}\n{}", self.0);
    }
}

/// Debian's kernel package, unpacked.
struct Kernel {
    image: PathBuf,
    modules: Vec<PathBuf>,
}

impl Kernel {
    fn find() -> Self {
        let dir = std::env::var_os("KILN_TEST_KERNEL").expect("KILN_TEST_KERNEL names no kernel: run `cargo xtask test`");
        let mut files = Vec::new();
        list(Path::new(&dir), &mut files);
        let image = files.iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("vmlinuz-"));
        let image = image.expect("KILN_TEST_KERNEL holds no kernel").clone();
        Self { image, modules: files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "ko")).collect() }
    }

    /// With what they need before them.
    fn in_order(&self, names: &[&str]) -> Vec<PathBuf> {
        let mut ordered = Vec::new();
        for name in names {
            let is_it = |path: &&PathBuf| path.file_stem().unwrap().to_string_lossy().replace('-', "_") == *name;
            let module = self.modules.iter().find(is_it).unwrap_or_else(|| panic!("the kernel has no module {name}"));
            let content = fs::read(module).unwrap();
            let at = content.windows(9).position(|part| part == b"\0depends=").expect("a module says what it depends on") + 9;
            let needs = content[at..].split(|byte| *byte == 0).next().unwrap();
            let needs = String::from_utf8(needs.to_vec()).unwrap();
            let needs: Vec<&str> = needs.split(',').filter(|need| !need.is_empty()).collect();
            ordered.extend(self.in_order(&needs));
            ordered.push(module.clone());
        }
        let mut seen = std::collections::HashSet::new();
        ordered.retain(|module| seen.insert(module.clone()));
        ordered
    }
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() { list(&entry.path(), files) } else { files.push(entry.path()) }
    }
}

fn ok(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
