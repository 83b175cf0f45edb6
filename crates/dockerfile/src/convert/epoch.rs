//! SOURCE_DATE_EPOCH: a number, or something whose date is taken.
use std::sync::Arc;

use llb::Graph;
use oci::Timestamp;

use super::Converter;
use super::ask::ContextFiles;
use super::copy::{check_digest, http_filename, is_http};
use super::env::Env;
use crate::git_ref::GitRef;
use crate::instruction::{Add, Command, Stage};
use crate::source::{self, Source};
use crate::{Error, Result};

const KEY: &str = "SOURCE_DATE_EPOCH";

impl Converter<'_> {
    /// Finds the date and puts it where the argument was.
    pub(super) async fn resolve_epoch(&mut self, stages: &[Stage]) -> Result<()> {
        let given = self.options.build_args.get(KEY).cloned();
        let Some(value) = given.or_else(|| self.global.get(KEY).filter(|v| !v.is_empty()).map(str::to_owned)) else { return Ok(()) };
        self.epoch = self.find_epoch(&value, stages).await?;
        let text = self.epoch.map(|time| time.unix_seconds().to_string());
        if self.options.build_args.remove(KEY).is_some() {
            self.options.build_args.extend(text.clone().map(|text| (KEY.to_owned(), text)));
        }
        if self.global.get(KEY).is_some() {
            match &text {
                Some(text) => self.global.set(KEY, text),
                None => self.global.remove(KEY),
            }
        }
        Ok(())
    }

    async fn find_epoch(&self, value: &str, stages: &[Stage]) -> Result<Option<Timestamp>> {
        if value.is_empty() {
            return Ok(None);
        }
        if let Ok(seconds) = value.parse() {
            return Ok(Some(Timestamp::from_unix(seconds, 0)));
        }
        if value == "context" {
            let context = self.ask.main_context(&[]).await.map_err(Error::caused_by)?;
            return self.date_of(context, "[internal] resolve main build context metadata").await;
        }
        if let Some(context) = self.ask.named_context(value, None).map_err(Error::caused_by)? {
            let loaded = self.ask.load_context(&context, None, self.options.resolve_mode).await.map_err(Error::caused_by)?;
            let graph = match loaded.files {
                ContextFiles::Graph(graph) => graph,
                ContextFiles::Local { local, name } => Some(Arc::new(source::local(&local).named(name).into_graph())),
            };
            return self.date_of(graph, &format!("[internal] resolve {KEY} named context {value}")).await;
        }
        let Some(stage) = stages.iter().find(|stage| stage.name == value.to_lowercase()) else {
            return Err(Error::new(format!("invalid {KEY}: {value}")));
        };
        let source = self.stage_source(stage).await.map_err(|e| e.at(stage.lines))?;
        let log_name = format!("[internal] resolve {KEY} source stage {}", stage.name);
        self.date_of(Some(Arc::new(source.into_graph())), &log_name).await
    }

    async fn date_of(&self, graph: Option<Arc<Graph>>, log_name: &str) -> Result<Option<Timestamp>> {
        match graph {
            Some(graph) => self.ask.source_date(&graph, log_name).await.map_err(Error::caused_by),
            None => Ok(None),
        }
    }

    /// The one remote source of a stage that has nothing else.
    async fn stage_source(&self, stage: &Stage) -> Result<Source> {
        let mut env = self.global.clone();
        env.remove(KEY);
        let base = self.lexer.expand(&stage.base, &env).map_err(|e| {
            let base = crate::text::quote(&stage.base);
            Error::from(e).context(format!("failed to process source stage base name {base}"))
        })?;
        if base.text != "scratch" {
            return Err(Error::new(format!("{KEY} stage must use FROM scratch")));
        }
        let mut found = None;
        for instruction in &stage.instructions {
            match &instruction.command {
                Command::Arg(args) => {
                    for arg in args {
                        if let Some(value) = self.options.build_args.get(&arg.key) {
                            env.set(&arg.key, value);
                        } else if let Some(default) = &arg.value {
                            let value = self.lexer.expand(default, &env)?.text;
                            env.set(&arg.key, &value);
                        }
                    }
                }
                Command::Add(_) if found.is_some() => return Err(Error::new(format!("{KEY} stage must contain exactly one remote ADD"))),
                Command::Add(add) => found = Some(self.add_source(add, &env).await?),
                _ => {
                    let keyword = &instruction.keyword;
                    let why = format!("does not meet source-only requirements: unsupported {keyword} instruction");
                    return Err(Error::new(format!("{KEY} stage {why}")));
                }
            }
        }
        found.ok_or_else(|| Error::new(format!("{KEY} stage must contain exactly one remote ADD")))
    }

    async fn add_source(&self, add: &Add, env: &Env) -> Result<Source> {
        let [written] = add.files.sources.as_slice() else {
            return Err(Error::new(format!("{KEY} stage must contain exactly one remote ADD source")));
        };
        if !add.files.inline.is_empty() {
            return Err(Error::new(format!("{KEY} stage must contain exactly one remote ADD source")));
        }
        let url = self.lexer.expand(written, env)?.text;
        let checksum = self.lexer.expand(&add.checksum, env)?.text;
        if is_http(&url) {
            if !checksum.is_empty() {
                check_digest(&checksum)?;
            }
            return Ok(source::http(&url, &http_filename(&url), &checksum));
        }
        match GitRef::parse(&url) {
            Some(Err(error)) => Err(error),
            Some(Ok(mut git)) if !git.like_a_path => {
                git.keep_git_dir = Some(add.keep_git_dir == Some(true) || git.keep_git_dir == Some(true));
                if !checksum.is_empty() {
                    git.checksum = checksum;
                }
                git.mtime.clear();
                git.fetch_by_commit = false;
                let known_hosts = match source::ssh_host(&git) {
                    Some(host) => self.ask.ssh_known_hosts(&host).await,
                    None => None,
                };
                Ok(source::git(&git, known_hosts.as_deref()))
            }
            _ => Err(Error::new(format!("{KEY} stage source must be a single HTTP(S) or Git ADD"))),
        }
    }
}
