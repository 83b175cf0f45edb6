//! Runs the git program, away from the host's configuration.
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use fault::Result;
use progress::Reporter;
use task::Cancel;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::error::{GitError, Status};
use super::request::is_commit;

/// How long git may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(10);

/// What the git program gets to know of the daemon's surroundings.
#[derive(Debug, Clone)]
pub struct GitSettings {
    /// Where programs are looked for.
    pub path: OsString,
    /// `HTTPS_PROXY` and the like.
    pub proxy: Vec<(String, String)>,
    /// For sockets, known hosts, and repositories that live no longer than one question.
    pub scratch: PathBuf,
}

/// The git program with the options that several calls share.
#[derive(Clone)]
pub(super) struct Git<'a> {
    pub settings: &'a GitSettings,
    pub reporter: &'a Reporter,
    pub cancel: &'a Cancel,
    /// Configuration that must not be seen on the command line: keys and values.
    pub secrets: Vec<(String, String)>,
    pub agent: Option<PathBuf>,
    pub known_hosts: Option<PathBuf>,
    pub git_dir: Option<PathBuf>,
    pub work_tree: Option<PathBuf>,
}

impl Git<'_> {
    pub fn in_repository(&self, git_dir: &Path) -> Self {
        Self { git_dir: Some(git_dir.to_owned()), ..self.clone() }
    }

    pub fn with_work_tree(&self, work_tree: &Path) -> Self {
        Self { work_tree: Some(work_tree.to_owned()), ..self.clone() }
    }

    /// Whether git runs through with these arguments.
    pub async fn succeeds(&self, args: &[&str]) -> Result<bool> {
        match self.run(args).await {
            Ok(_) => Ok(true),
            Err(fault) if matches!(fault.find::<GitError>(), Some(GitError::Failed { .. })) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// What git prints, without the blanks around it.
    pub async fn text(&self, args: &[&str]) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run(args).await?).trim().to_owned())
    }

    /// What git prints. Servers that are too old for an argument are asked again without it.
    pub async fn run(&self, args: &[&str]) -> Result<Vec<u8>> {
        let mut args = args.to_vec();
        loop {
            let (status, stdout, stderr) = self.run_once(&args).await?;
            if status.success() {
                return Ok(stdout);
            }
            let stderr = String::from_utf8_lossy(&stderr).into_owned();
            match simpler(&args, &stderr) {
                Some(fewer) => args = fewer,
                None => return Err(GitError::Failed { stderr, status: Status(status) }.into()),
            }
        }
    }

    async fn run_once(&self, args: &[&str]) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let mut child = self.command(args).spawn().map_err(|source| GitError::NoGit { source })?;
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let work = async { tokio::try_join!(child.wait(), self.collect(1, stdout), self.collect(2, stderr)) };
        tokio::select! {
            ended = work => return Ok(ended?),
            () = self.cancel.cancelled() => {}
        }
        end(&mut child).await;
        Err(self.cancel.fault())
    }

    /// Reads a stream to its end, showing it as it comes.
    async fn collect(&self, number: u8, mut stream: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                return Ok(all);
            }
            self.reporter.log(number, buffer[..n].to_vec());
            all.extend_from_slice(&buffer[..n]);
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        // Files must get the modes that are in the repository, whatever the daemon's umask.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask 022; exec git \"$@\"", "git"]);
        // Repositories must not bring in others of the file system as submodules.
        command.args(["-c", "protocol.file.allow=user"]);
        if let Some(tree) = &self.work_tree {
            command.arg("--work-tree").arg(tree);
        }
        if let Some(dir) = &self.git_dir {
            command.arg("--git-dir").arg(dir);
        }
        command.args(args).current_dir(self.work_tree.as_deref().unwrap_or(Path::new("/")));
        command.env_clear().envs(self.environment());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // git starts helpers: all of them end together.
        command.process_group(0).kill_on_drop(true);
        command
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut ssh = OsString::from("ssh -F /dev/null");
        match &self.known_hosts {
            Some(path) => {
                ssh.push(" -o UserKnownHostsFile=");
                ssh.push(path);
            }
            None => ssh.push(" -o StrictHostKeyChecking=no"),
        }
        let mut env: Vec<(OsString, OsString)> = vec![
            ("PATH".into(), self.settings.path.clone()),
            ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            ("GIT_SSH_COMMAND".into(), ssh),
            ("LC_ALL".into(), "C".into()),
            ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
            ("HOME".into(), "/dev/null".into()),
            ("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()),
        ];
        env.extend(self.settings.proxy.iter().map(|(key, value)| (key.into(), value.into())));
        env.extend(self.agent.iter().map(|path| ("SSH_AUTH_SOCK".into(), path.into())));
        if !self.secrets.is_empty() {
            env.push(("GIT_CONFIG_COUNT".into(), self.secrets.len().to_string().into()));
        }
        for (index, (key, value)) in self.secrets.iter().enumerate() {
            env.push((format!("GIT_CONFIG_KEY_{index}").into(), key.into()));
            env.push((format!("GIT_CONFIG_VALUE_{index}").into(), value.into()));
        }
        env
    }
}

/// The arguments without what the other side does not know, if it said so.
fn simpler<'a>(args: &[&'a str], stderr: &str) -> Option<Vec<&'a str>> {
    let has = |text| stderr.contains(text);
    if (has("--depth") || has("shallow")) && args.contains(&"--depth=1") {
        return Some(args.iter().copied().filter(|arg| *arg != "--depth=1").collect());
    }
    // A server that gives no commit by its hash gives its branches.
    let (last, rest) = args.split_last()?;
    let by_hash = args.len() > 2 && args[0] == "fetch" && is_commit(last);
    ((has("not our ref") || has("unadvertised object")) && by_hash).then(|| rest.to_vec())
}

/// Asks the whole group to end, and ends it if it does not.
async fn end(child: &mut Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    let signal = |signal| group.map(|group| rustix::process::kill_process_group(group, signal));
    let _ = signal(rustix::process::Signal::TERM);
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = signal(rustix::process::Signal::KILL);
        let _ = child.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_asked_for_less() {
        let hash = "0123456789012345678901234567890123456789";
        assert_eq!(simpler(&["fetch", "--depth=1", "origin"], "fatal: dumb http does not support shallow"), Some(vec!["fetch", "origin"]));
        assert_eq!(
            simpler(&["fetch", "origin", hash], "error: Server does not allow request for unadvertised object"),
            Some(vec!["fetch", "origin"])
        );
        assert_eq!(simpler(&["fetch", "origin", "main"], "not our ref"), None);
        assert_eq!(simpler(&["fetch", "origin"], "shallow"), None);
    }
}
