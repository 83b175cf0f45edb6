//! Runs instructions one after another: each changes the stage's files, environment or config.
use std::collections::BTreeSet;

use llb::{FileActionKind, Metadata, NetMode, Owner, Who};
use oci::{ImageConfig, Platform, Timestamp};
use patterns::Matcher;

use super::plan::{Planned, PlannedAction};
use super::stage::{CapturedArg, StageState, Step};
use super::{Converter, copy, expose, image, name, paths, validate};
use crate::instruction::{self, Arg, Command, Files, Instruction, Pair};
use crate::lint::{self, Linter};
use crate::shell::{Lexer, Variables};
use crate::source::describe;
use crate::text::{list, nearest, quote_list};
use crate::{Error, Lines, Result};

/// Arguments that steer the frontend and are no business of a process.
const NOT_IN_ENV: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

impl Converter<'_> {
    pub(super) async fn dispatch_stages(&mut self, reachable: &BTreeSet<usize>, target: usize) -> Result<()> {
        let ignore = self.ask.ignore_patterns().await.map_err(Error::caused_by)?;
        if !ignore.is_empty() {
            self.ignore = Some(Matcher::new(&ignore).map_err(|e| Error::new(e.to_string()))?);
        }
        for index in 0..self.stages.len() {
            if self.options.all_stages || (reachable.contains(&index) && !self.stages[index].dispatched) {
                self.dispatch_stage(index).await?;
            }
        }
        let paths = self.stages[target].paths;
        self.plan.use_path(paths, "/");
        Ok(())
    }

    async fn dispatch_stage(&mut self, index: usize) -> Result<()> {
        self.stages.inherit(index);
        let target_platform = self.target_platform.clone();
        let hostname = self.options.hostname.clone();
        let network = self.options.network;
        let epoch = self.epoch;
        let stage = &mut self.stages[index];
        stage.dispatched = true;
        let os = stage.platform.get_or_insert(target_platform).os.clone();
        begin(stage, &os, &hostname, network).map_err(|e| e.at(stage.stage.lines))?;
        let steps = std::mem::take(&mut stage.steps);
        for step in &steps {
            let lines = step.instruction.lines;
            self.dispatch(index, step, epoch).await.map_err(|e| e.at(lines))?;
        }
        self.stages[index].steps = steps;
        self.find_scans(index);
        Ok(())
    }

    /// What a bill of materials shall look through besides the target.
    fn find_scans(&mut self, index: usize) {
        let global = NOT_IN_ENV.map(|name| self.global.get(name).map(str::to_owned));
        let stage = &mut self.stages[index];
        let mut wanted = [false; 2];
        for (i, name) in NOT_IN_ENV.iter().enumerate() {
            let own = stage.args.iter().rev().find(|arg| arg.key == *name && arg.value.is_some()).and_then(|arg| arg.value.clone());
            wanted[i] = own.or_else(|| global[i].clone()).is_some_and(|value| holds_stage(&stage.shown_name, &value));
        }
        stage.scan_context |= wanted[0];
        stage.scan_stage |= wanted[1];
    }

    async fn dispatch(&mut self, index: usize, step: &Step, epoch: Option<Timestamp>) -> Result<()> {
        let instruction = &step.instruction;
        let linter = self.linter.below(&instruction.comments);
        self.stages[index].in_trigger = step.is_trigger;
        let expander = Expander { lexer: self.lexer, stage: &self.stages[index], linter: &linter, instruction };
        let command = expander.command()?;
        match &command {
            Command::Run(run) => self.run_step(index, step, run, epoch)?,
            Command::Add(add) => {
                let spec = copy::Spec::add(add, instruction);
                self.copy_step(index, None, &spec, &linter, epoch).await?;
                for source in add.files.sources.iter().filter(|s| !s.starts_with("http://") && !s.starts_with("https://")) {
                    let paths = self.stages[index].context_paths;
                    self.plan.use_path(paths, source);
                }
            }
            Command::Copy(files) => self.copy_command(index, step, files, &linter, epoch).await?,
            Command::Workdir(path) => self.workdir(index, instruction, path, &linter, epoch)?,
            Command::Arg(args) => self.arg(index, instruction, args, &linter, epoch)?,
            Command::Expose(ports) => {
                let stage = &mut self.stages[index];
                let mut words = Vec::new();
                for port in ports {
                    words.extend(self.lexer.words(port, &stage.state.env)?);
                }
                let ports = expose::ports(&words, instruction.lines, &linter)?;
                image::commit(&mut stage.image, format!("EXPOSE {}", list(&ports)), false, epoch);
                stage.image.config.exposed_ports.extend(ports);
            }
            _ => configure(&mut self.stages[index], instruction, &command, &linter, epoch)?,
        }
        Ok(())
    }

    async fn copy_command(
        &mut self,
        index: usize,
        step: &Step,
        files: &instruction::CopyFiles,
        linter: &Linter,
        epoch: Option<Timestamp>,
    ) -> Result<()> {
        let source = step.sources.first().copied();
        if source.is_some_and(|source| !self.stages[source].dispatched) {
            let (from, stage) = (crate::text::quote(&files.from), crate::text::quote(&self.stages[index].shown_name));
            return Err(Error::new(format!("cannot copy from stage {from}, it needs to be defined before current stage {stage}")));
        }
        let spec = copy::Spec::copy(files, &step.instruction);
        self.copy_step(index, source, &spec, linter, epoch).await?;
        let paths = source.map_or(self.stages[index].context_paths, |source| self.stages[source].paths);
        for path in &files.files.sources {
            self.plan.use_path(paths, path);
        }
        Ok(())
    }

    fn workdir(&mut self, index: usize, instruction: &Instruction, path: &str, linter: &Linter, epoch: Option<Timestamp>) -> Result<()> {
        let stage = &mut self.stages[index];
        let platform = stage.platform.clone().unwrap_or_else(|| self.target_platform.clone());
        if !stage.workdir_set && !paths::is_absolute(path, &platform.os) {
            linter.warn(&lint::WORKDIR_RELATIVE_PATH, instruction.lines, || {
                let path = crate::text::quote(path);
                format!("Relative workdir {path} can have unexpected results if the base image changes")
            });
        }
        stage.workdir_set = true;
        set_workdir(stage, path, &platform.os)?;
        let dir = stage.state.dir.clone();
        if dir != "/" {
            let env = stage.state.env.clone();
            let text = name::shown(&instruction.code, &self.lexer, &env);
            let shown = self.options.multi_platform.then_some(&platform);
            let mut metadata = Metadata::default();
            describe(&mut metadata, "llb.customname", name::prefix(stage, &text, shown, &env));
            let user = &stage.image.config.user;
            let mkdir = FileActionKind::Mkdir {
                path: paths::action_path("/", &dir, false),
                mode: 0o755,
                make_parents: true,
                owner: (!user.is_empty()).then(|| owner(user)),
                timestamp: epoch.map_or(-1, nanos),
            };
            let planned = Planned::File { base: stage.state.files, actions: vec![PlannedAction { kind: mkdir, from: None }] };
            stage.state.files = Some(self.plan.add(planned, metadata, Some(instruction.lines)));
        }
        image::commit(&mut stage.image, format!("WORKDIR {dir}"), dir != "/", epoch);
        Ok(())
    }

    fn arg(&mut self, index: usize, instruction: &Instruction, args: &[Arg], linter: &Linter, epoch: Option<Timestamp>) -> Result<()> {
        let mut shown = Vec::new();
        for arg in args {
            validate::secret_name("ARG", &arg.key, instruction.lines, linter);
            let mut arg = arg.clone();
            let given = self.options.build_args.get(&arg.key);
            let mut inherited = false;
            if let Some(value) = given {
                arg.value = Some(value.clone());
            } else if let Some(default) = &arg.value {
                let expander = Expander { lexer: self.lexer, stage: &self.stages[index], linter, instruction };
                arg.value = Some(expander.word(default)?);
            } else if let Some(value) = self.global.get(&arg.key) {
                arg.value = Some(value.to_owned());
                inherited = true;
            }
            let stage = &mut self.stages[index];
            if let Some(value) = arg.value.as_ref().filter(|_| !NOT_IN_ENV.contains(&arg.key.as_str())) {
                stage.state.env.set(&arg.key, value);
            }
            if !inherited {
                let value = arg.value.clone().unwrap_or_default();
                let captured = CapturedArg { value, arg: arg.clone(), deps: BTreeSet::new(), lines: instruction.lines };
                stage.outline.args.insert(arg.key.clone(), captured);
            }
            stage.outline.used.insert(arg.key.clone());
            shown.push(arg.value.as_ref().map_or_else(|| arg.key.clone(), |value| format!("{}={value}", arg.key)));
            stage.args.push(arg);
        }
        image::commit(&mut self.stages[index].image, format!("ARG {}", shown.join(" ")), false, epoch);
        Ok(())
    }
}

/// Unix nanoseconds.
fn nanos(time: Timestamp) -> i64 {
    time.unix_seconds().saturating_mul(1_000_000_000).saturating_add(i64::from(time.subsec_nanos()))
}

/// Takes over what the base's config says about processes.
fn begin(stage: &mut StageState, os: &str, hostname: &str, network: NetMode) -> Result<()> {
    let has_path = stage.image.config.env.iter().any(|entry| image::split_env(entry).0 == "PATH");
    if !has_path && os != "windows" {
        stage.image.config.env.push(format!("PATH={}", image::default_path(os)));
    }
    for entry in &stage.image.config.env {
        let (key, value) = image::split_env(entry);
        stage.state.env.set(key, value);
    }
    if !hostname.is_empty() {
        stage.state.hostname = hostname.to_owned();
    }
    if !stage.image.config.working_dir.is_empty() {
        let dir = stage.image.config.working_dir.clone();
        set_workdir(stage, &dir, os)?;
    }
    if !stage.image.config.user.is_empty() {
        stage.state.user = stage.image.config.user.clone();
    }
    stage.state.network = network;
    Ok(())
}

fn set_workdir(stage: &mut StageState, path: &str, os: &str) -> Result<()> {
    let dir = paths::normalize_workdir(&stage.image.config.working_dir, path, os).map_err(|e| e.context("normalizing workdir"))?;
    stage.state.dir = paths::to_slash(&dir, os);
    stage.image.config.working_dir = dir;
    Ok(())
}

/// Instructions that only change the config.
fn configure(stage: &mut StageState, at: &Instruction, command: &Command, linter: &Linter, epoch: Option<Timestamp>) -> Result<()> {
    let lines = at.lines;
    let text = match command {
        Command::Maintainer(author) => {
            stage.image.author = author.clone();
            format!("MAINTAINER {author}")
        }
        Command::Env(pairs) => {
            for pair in pairs {
                legacy_form(pair, at, linter);
                validate::secret_name("ENV", &pair.key, lines, linter);
                stage.state.env.set(&pair.key, &pair.value);
                image::set_env(&mut stage.image, &pair.key, &pair.value);
            }
            format!("ENV{}", shown_pairs(pairs))
        }
        Command::Label(pairs) => {
            for pair in pairs {
                legacy_form(pair, at, linter);
                stage.image.config.labels.insert(pair.key.clone(), pair.value.clone());
            }
            format!("LABEL{}", shown_pairs(pairs))
        }
        Command::OnBuild(trigger) => {
            stage.image.config.on_build.push(trigger.clone());
            return Ok(());
        }
        Command::Cmd(line) => {
            once(&mut stage.cmd_at, at, linter);
            let args = command_line(&stage.image, line, at, linter);
            stage.image.config.cmd = args.clone();
            stage.image.config.args_escaped = true;
            format!("CMD {}", quote_list(&args))
        }
        Command::Entrypoint(line) => {
            once(&mut stage.entrypoint_at, at, linter);
            let args = command_line(&stage.image, line, at, linter);
            stage.image.config.entrypoint = args.clone();
            if stage.cmd_at.is_none() {
                stage.image.config.cmd.clear();
            }
            format!("ENTRYPOINT {}", quote_list(&args))
        }
        Command::Healthcheck(check) => {
            once(&mut stage.healthcheck_at, at, linter);
            stage.image.config.healthcheck = Some(check.clone());
            let time = image::duration;
            format!(
                "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
                list(&check.test),
                time(check.interval),
                time(check.timeout),
                time(check.start_period),
                time(check.start_interval),
                check.retries
            )
        }
        Command::User(user) => {
            stage.state.user = user.clone();
            stage.image.config.user = user.clone();
            format!("USER {user}")
        }
        Command::Volume(volumes) => {
            if volumes.iter().any(String::is_empty) {
                return Err(Error::new("VOLUME specified can not be an empty string"));
            }
            stage.image.config.volumes.extend(volumes.iter().cloned());
            format!("VOLUME {}", list(volumes))
        }
        Command::StopSignal(signal) => {
            instruction::parse_signal(signal)?;
            stage.image.config.stop_signal = signal.clone();
            format!("STOPSIGNAL {signal}")
        }
        Command::Shell(shell) => {
            stage.image.config.shell = shell.clone();
            format!("SHELL {}", list(shell))
        }
        Command::Add(_) | Command::Arg(_) | Command::Copy(_) | Command::Expose(_) | Command::Run(_) | Command::Workdir(_) => {
            unreachable!("dispatched before")
        }
    };
    image::commit(&mut stage.image, text, false, epoch);
    Ok(())
}

fn shown_pairs(pairs: &[Pair]) -> String {
    pairs.iter().map(|pair| format!(" {}={}", pair.key, pair.value)).collect()
}

fn legacy_form(pair: &Pair, at: &Instruction, linter: &Linter) {
    if pair.legacy {
        let keyword = &at.keyword;
        linter.warn(&lint::LEGACY_KEY_VALUE_FORMAT, at.lines, || {
            format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format")
        });
    }
}

/// Only the last of these counts, so the one before is what the warning points at.
fn once(seen: &mut Option<Lines>, at: &Instruction, linter: &Linter) {
    if let Some(earlier) = seen.replace(at.lines) {
        linter.warn(&lint::MULTIPLE_INSTRUCTIONS_DISALLOWED, earlier, || {
            format!("Multiple {} instructions should not be used in the same stage because only the last one will be used", at.keyword)
        });
    }
}

fn command_line(image: &ImageConfig, line: &instruction::CommandLine, at: &Instruction, linter: &Linter) -> Vec<String> {
    if !line.shell {
        return line.args.clone();
    }
    if image.config.shell.is_empty() {
        linter.warn(&lint::JSON_ARGS_RECOMMENDED, at.lines, || {
            format!("JSON arguments recommended for {} to prevent unintended behavior related to OS signals", at.keyword)
        });
    }
    image::with_shell(image, &line.args)
}

/// `user[:group]`, each a number or a name.
pub(super) fn owner(text: &str) -> Owner {
    let who = |name: &str| match name {
        "root" | "" => Who::Id(0),
        name => match name.parse::<i32>() {
            Ok(id) => Who::Id(id as u32),
            Err(_) => Who::Name { name: name.to_owned(), input: None },
        },
    };
    match text.split_once(':') {
        Some((user, group)) => Owner { user: Some(who(user)), group: Some(who(group)) },
        None => Owner { user: Some(who(text)), group: None },
    }
}

/// A boolean, or a list of stage names.
fn holds_stage(stage: &str, value: &str) -> bool {
    crate::text::parse_bool(value).unwrap_or_else(|| value.split(',').any(|name| name == stage))
}

/// Expands the variables of one instruction with the environment in front of it.
pub(super) struct Expander<'a> {
    pub lexer: Lexer,
    pub stage: &'a StageState,
    pub linter: &'a Linter,
    pub instruction: &'a Instruction,
}

impl Expander<'_> {
    pub fn word(&self, word: &str) -> Result<String> {
        self.with(&self.lexer, word)
    }

    fn with(&self, lexer: &Lexer, word: &str) -> Result<String> {
        if !word.contains(['$', '\'', '"', '\\', '`', '<']) {
            return Ok(word.to_owned());
        }
        let env = &self.stage.state.env;
        let expanded = lexer.expand(word, env);
        for name in super::unmatched(&expanded) {
            if self.stage.args.iter().any(|arg| arg.key == *name) || NOT_IN_ENV.contains(&name.as_str()) {
                continue;
            }
            self.linter.warn(&lint::UNDEFINED_VAR, self.instruction.lines, || {
                let guess = nearest(name, env.names(), true).map_or_else(String::new, |guess| format!(" (did you mean ${guess}?)"));
                format!("Usage of undefined variable '${name}'{guess}")
            });
        }
        Ok(expanded?.text)
    }

    fn pairs(&self, pairs: &[Pair]) -> Result<Vec<Pair>> {
        let pair = |p: &Pair| Ok(Pair { key: self.word(&p.key)?, value: self.word(&p.value)?, legacy: p.legacy });
        pairs.iter().map(pair).collect()
    }

    fn files(&self, files: &Files) -> Result<Files> {
        let mut files = files.clone();
        for source in &mut files.sources {
            *source = self.word(source)?;
        }
        files.dest = self.word(&files.dest)?;
        // Documents keep their quotes, and their escape character is always the backslash.
        let mut lexer = Lexer::new('\\');
        lexer.literal_quotes = true;
        for inline in files.inline.iter_mut().filter(|inline| inline.expand) {
            inline.data = self.with(&lexer, &inline.data)?;
        }
        Ok(files)
    }

    /// The instruction with its variables expanded, as far as that is its way. ARG expands its defaults only if they count.
    fn command(&self) -> Result<Command> {
        Ok(match &self.instruction.command {
            Command::Env(pairs) => Command::Env(self.pairs(pairs)?),
            Command::Label(pairs) => Command::Label(self.pairs(pairs)?),
            Command::Add(add) => {
                let mut add = add.clone();
                add.chown = self.word(&add.chown)?;
                add.chmod = self.word(&add.chmod)?;
                add.checksum = self.word(&add.checksum)?;
                add.files = self.files(&add.files)?;
                Command::Add(add)
            }
            Command::Copy(copy) => {
                let mut copy = copy.clone();
                copy.chown = self.word(&copy.chown)?;
                copy.chmod = self.word(&copy.chmod)?;
                copy.files = self.files(&copy.files)?;
                Command::Copy(copy)
            }
            Command::Workdir(path) => Command::Workdir(self.word(path)?),
            Command::User(user) => Command::User(self.word(user)?),
            Command::StopSignal(signal) => Command::StopSignal(self.word(signal)?),
            Command::Volume(volumes) => Command::Volume(volumes.iter().map(|v| self.word(v)).collect::<Result<_>>()?),
            other => other.clone(),
        })
    }
}

impl Converter<'_> {
    pub(super) fn expander<'e>(&'e self, index: usize, instruction: &'e Instruction, linter: &'e Linter) -> Expander<'e> {
        Expander { lexer: self.lexer, stage: &self.stages[index], linter, instruction }
    }

    pub(super) fn platform_of(&self, index: usize) -> Platform {
        self.stages[index].platform.clone().unwrap_or_else(|| self.target_platform.clone())
    }
}
