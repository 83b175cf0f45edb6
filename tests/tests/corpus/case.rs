//! One case of the corpus. Lines before the first section are what it is about and how it is built:
//!
//! ```text
//! # Build arguments are in the history of RUN.
//! opt build-arg:VERSION=1.2
//! local shared=dir/in/the/context
//! secret token=s3cret
//! >> Dockerfile
//! FROM base
//! >> file src/run.sh 0755
//! #!/bin/sh
//! >> link src/current run.sh
//! >> dir empty 0700
//! >> expect
//! ```
//!
//! A file's last newline belongs to it; `>> file` with a mode of `-` in front of the path's content `none` does not exist.
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

#[derive(Debug, Default)]
pub struct Case {
    head: String,
    pub opts: Vec<String>,
    pub locals: Vec<(String, String)>,
    pub secrets: Vec<(String, String)>,
    /// What it is, and its lines.
    sections: Vec<(String, String)>,
    pub expected: String,
}

impl Case {
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let mut case = Self::default();
        for line in text.split_inclusive('\n') {
            if let Some(section) = line.strip_prefix(">> ") {
                case.sections.push((section.trim_end().to_owned(), String::new()));
            } else if let Some((_, body)) = case.sections.last_mut() {
                body.push_str(line);
            } else {
                case.head.push_str(line);
                case.setting(path, line.trim_end());
            }
        }
        if let Some((_, body)) = case.sections.pop_if(|(name, _)| name == "expect") {
            case.expected = body;
        }
        case
    }

    fn setting(&mut self, path: &Path, line: &str) {
        let pair = |text: &str| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap();
        match line.split_once(' ') {
            Some(("opt", value)) => self.opts.push(value.to_owned()),
            Some(("local", value)) => self.locals.push(pair(value)),
            Some(("secret", value)) => self.secrets.push(pair(value)),
            _ if line.is_empty() || line.starts_with('#') => {}
            _ => panic!("{}: {line:?} is no setting", path.display()),
        }
    }

    /// Writes the context.
    pub fn lay_out(&self, root: &Path) {
        std::fs::create_dir_all(root).unwrap();
        let mode = |path: &Path, mode: &str| {
            let mode = u32::from_str_radix(mode, 8).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (section, body) in &self.sections {
            let words: Vec<&str> = section.split(' ').collect();
            let (kind, name, extra) = match words.as_slice() {
                ["Dockerfile"] => ("file", "Dockerfile", None),
                [kind, name] => (*kind, *name, None),
                [kind, name, extra] => (*kind, *name, Some(*extra)),
                _ => panic!("{section:?} is no section"),
            };
            let path = root.join(name);
            for parent in path.ancestors().skip(1).take_while(|parent| *parent != root && !parent.exists()).collect::<Vec<_>>().iter().rev()
            {
                std::fs::create_dir(parent).unwrap();
                mode(parent, "755");
            }
            match kind {
                "file" => {
                    std::fs::write(&path, body).unwrap();
                    mode(&path, extra.unwrap_or("644"));
                }
                "dir" => {
                    if !path.exists() {
                        std::fs::create_dir(&path).unwrap();
                    }
                    mode(&path, extra.unwrap_or("755"));
                }
                "link" => std::os::unix::fs::symlink(extra.unwrap(), &path).unwrap(),
                "tar" => std::fs::write(&path, archive(body)).unwrap(),
                _ => panic!("{section:?} is no section"),
            }
        }
    }

    pub fn write(&self, path: &Path, expected: &str) {
        let mut text = self.head.clone();
        for (section, body) in &self.sections {
            text.push_str(&format!(">> {section}\n{body}"));
        }
        text.push_str(&format!(">> expect\n{expected}"));
        std::fs::write(path, text).unwrap();
    }
}

/// A tar of `path=content` lines.
fn archive(lines: &str) -> Vec<u8> {
    let files = lines.lines().map(|line| line.split_once('=').unwrap());
    files.fold(testkit::Tar::new(), |tar, (path, content)| tar.file(path, 0o640, content)).finish()
}
