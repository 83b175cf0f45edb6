//! Copies one file or directory of a view into an editor.
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use llb::Copy;
use patterns::{Matcher, MatcherError, Parent};
use snapshot::{Attributes, Editor, Entry, FileType, Follow, Metadata, PathError, Time, TreeId, View};
use task::Cancel;

use super::error::ActionError;
use super::mode::ModeChange;
use super::owner::Ids;

/// How what is copied differs from its source.
pub(super) struct Change {
    owner: Option<Ids>,
    mode: Mode,
    time: Option<Time>,
}

enum Mode {
    Keep,
    Bits(u32),
    Symbolic(ModeChange),
}

impl Change {
    pub(super) fn new(owner: Option<Ids>, mode_str: &str, mode: i32, time: Option<Time>) -> Result<Self, ActionError> {
        let mode = match (mode_str, mode) {
            ("", -1) => Mode::Keep,
            ("", bits) => Mode::Bits(bits as u32 & 0o7777),
            (text, _) => Mode::Symbolic(ModeChange::parse(text).map_err(|error| ActionError::text(error.to_string()))?),
        };
        Ok(Self { owner, mode, time })
    }

    /// What to set; nothing that is as it should be already. Of access times nothing is kept in layers, so they alone are no difference.
    fn of(&self, metadata: &Metadata) -> Attributes {
        let permissions = match &self.mode {
            _ if metadata.is_symlink() => None,
            Mode::Keep => None,
            Mode::Bits(bits) => Some(*bits),
            Mode::Symbolic(change) => Some(change.apply(metadata.permissions(), metadata.is_dir())),
        };
        Attributes {
            owner: self.owner.filter(|owner| *owner != (metadata.uid, metadata.gid)),
            permissions: permissions.filter(|bits| *bits != metadata.permissions()),
            times: self.time.filter(|time| *time != metadata.mtime).map(|time| (time, time)),
        }
    }

    /// All that a directory gets, which is not copied as a whole.
    fn all_of(&self, metadata: &Metadata) -> Attributes {
        let change = self.of(metadata);
        Attributes {
            owner: Some(change.owner.unwrap_or((metadata.uid, metadata.gid))),
            permissions: Some(change.permissions.unwrap_or(metadata.permissions())),
            times: Some(self.times_of(metadata)),
        }
    }

    fn times_of(&self, metadata: &Metadata) -> (Time, Time) {
        self.time.map_or((metadata.atime, metadata.mtime), |time| (time, time))
    }
}

pub(super) struct Copier<'a, 'e> {
    source: &'a View,
    editor: &'a mut Editor<'e>,
    change: Change,
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    replace: bool,
    cancel: &'a Cancel,
    /// Where a file with several names was put first. Files of different trees that share an inode are none: see the store's hard links.
    links: HashMap<(TreeId, u64), PathBuf>,
    /// The directories around what is being copied, and whether they are there yet: a directory that is not selected itself is made when
    /// something in it is.
    around: Vec<Around>,
}

struct Around {
    entry: Entry,
    target: PathBuf,
    made: bool,
    /// Made here, so that nothing else can be in it.
    fresh: bool,
    /// Made late: its times are set when nothing more comes.
    late: bool,
}

/// What is known of a path from the patterns.
#[derive(Default)]
struct Matched {
    include: Parent,
    exclude: Parent,
}

impl<'a, 'e> Copier<'a, 'e> {
    pub(super) fn new(
        source: &'a View,
        editor: &'a mut Editor<'e>,
        change: Change,
        spec: &Copy,
        cancel: &'a Cancel,
    ) -> Result<Self, ActionError> {
        Ok(Self {
            source,
            editor,
            change,
            include: matcher("includepatterns", &spec.include_patterns)?,
            exclude: matcher("excludepatterns", &spec.exclude_patterns)?,
            replace: spec.always_replace_existing_dest_paths,
            cancel,
            links: HashMap::new(),
            around: Vec::new(),
        })
    }

    /// Copies what was asked for. A directory that is there already keeps its metadata but for its times.
    pub(super) fn copy_top(mut self, entry: &Entry, target: &Path) -> Result<(), ActionError> {
        let existing = self.existing(target)?;
        if !entry.metadata().is_dir() {
            return self.copy_file(entry, target, existing);
        }
        let existing = self.make_way(entry, target, existing)?;
        let fresh = self.make_dir(entry, target, existing.as_ref())?;
        self.copy_children(entry, target, "", Around::new(entry, target, true, fresh), &Matched::default())?;
        if fresh {
            return self.finish_dir(entry, target);
        }
        let (access, modification) = self.change.times_of(entry.metadata());
        Ok(self.editor.set_times(target, access, modification)?)
    }

    fn copy(&mut self, entry: &Entry, target: &Path, components: &str, parent: &Matched) -> Result<(), ActionError> {
        self.cancel.check()?;
        let (included, excluded, matched) = self.decide(components, parent)?;
        if !entry.metadata().is_dir() {
            if included {
                let existing = self.existing(target)?;
                self.make_parents()?;
                return self.copy_file(entry, target, existing);
            }
            return Ok(());
        }
        let existing = self.existing(target)?;
        let may_hold = !excluded || self.exclude.as_ref().is_some_and(Matcher::has_exclusions);
        if !included {
            if may_hold {
                self.copy_children(entry, target, components, Around::new(entry, target, false, false), &matched)?;
            }
            return Ok(());
        }
        self.make_parents()?;
        let existing = self.make_way(entry, target, existing)?;
        let fresh = self.make_dir(entry, target, existing.as_ref())?;
        self.copy_children(entry, target, components, Around::new(entry, target, true, fresh), &matched)?;
        self.finish_dir(entry, target)
    }

    fn copy_children(
        &mut self,
        entry: &Entry,
        target: &Path,
        components: &str,
        around: Around,
        matched: &Matched,
    ) -> Result<(), ActionError> {
        self.around.push(around);
        let filtered = self.include.is_some() || self.exclude.is_some();
        let mut child_components = String::new();
        for child in self
            .source
            .read_dir(entry.path())
            .map_err(|error| ActionError::from(error).within(format!("failed to read {}", entry.path().display())))?
        {
            if filtered {
                child_components.clear();
                child_components.push_str(components);
                if !components.is_empty() {
                    child_components.push('/');
                }
                child_components.push_str(&child.name().to_string_lossy());
            }
            self.copy(&child, &target.join(child.name()), &child_components, matched)?;
        }
        let around = self.around.pop().expect("pushed above");
        if around.late {
            let (access, modification) = self.change.times_of(entry.metadata());
            self.editor.set_times(target, access, modification)?;
        }
        Ok(())
    }

    /// Whether a path is selected, and whether it is because of an exclude pattern that it is not.
    fn decide(&self, components: &str, parent: &Matched) -> Result<(bool, bool, Matched), ActionError> {
        let mut matched = Matched::default();
        let (mut included, mut excluded) = (true, false);
        if let Some(matcher) = &self.include {
            (included, matched.include) = matcher.matches_below(components, &parent.include).map_err(failed("includepatterns"))?;
        }
        if let Some(matcher) = &self.exclude {
            (excluded, matched.exclude) = matcher.matches_below(components, &parent.exclude).map_err(failed("excludepatterns"))?;
        }
        Ok((included && !excluded, excluded, matched))
    }

    /// Makes the directories around that were waiting for something to be in them.
    fn make_parents(&mut self) -> Result<(), ActionError> {
        for at in 0..self.around.len() {
            if self.around[at].made {
                continue;
            }
            let (entry, target) = (self.around[at].entry.clone(), self.around[at].target.clone());
            let existing = self.editor.lookup(&target, Follow::No)?;
            let fresh = self.make_dir(&entry, &target, existing.as_ref())?;
            if fresh {
                self.finish_dir(&entry, &target)?;
            }
            (self.around[at].made, self.around[at].fresh, self.around[at].late) = (true, fresh, fresh);
        }
        Ok(())
    }

    /// What is at the target now.
    fn existing(&self, target: &Path) -> Result<Option<Entry>, ActionError> {
        if self.around.last().is_some_and(|around| around.fresh) {
            return Ok(None);
        }
        match self.editor.require(target, Follow::No) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ActionError::from(error).within(format!("failed to stat {}", target.display()))),
        }
    }

    /// Takes away what is in the way of `entry`, where that is asked for; returns what is still there.
    fn make_way(&mut self, entry: &Entry, target: &Path, existing: Option<Entry>) -> Result<Option<Entry>, ActionError> {
        let in_the_way = existing.as_ref().is_some_and(|existing| !(entry.metadata().is_dir() && existing.metadata().is_dir()));
        if self.replace && in_the_way {
            self.editor.remove(target)?;
            return Ok(None);
        }
        Ok(existing)
    }

    /// Tells whether it made one.
    fn make_dir(&mut self, entry: &Entry, target: &Path, existing: Option<&Entry>) -> Result<bool, ActionError> {
        match existing {
            Some(existing) if existing.metadata().is_dir() => Ok(false),
            Some(_) => Err(ActionError::text(format!("cannot copy to non-directory: {}", target.display()))),
            None => {
                let made = self.editor.mkdir(target, entry.metadata().permissions());
                made.map_err(|error| ActionError::from(error).within(format!("failed to mkdir {}", target.display())))?;
                Ok(true)
            }
        }
    }

    /// A directory's own metadata, once its content is there.
    fn finish_dir(&mut self, entry: &Entry, target: &Path) -> Result<(), ActionError> {
        for (name, value) in self.source.xattrs(entry.path())? {
            if let Err(error) = self.editor.set_xattr(target, &name, &value) {
                tracing::debug!(path = %target.display(), %error, "an extended attribute was not copied");
            }
        }
        let attributes = self.change.all_of(entry.metadata());
        self.editor.set(target, &attributes).map_err(info)
    }

    fn copy_file(&mut self, entry: &Entry, target: &Path, existing: Option<Entry>) -> Result<(), ActionError> {
        if let Some(existing) = self.make_way(entry, target, existing)? {
            if existing.metadata().is_dir() {
                return Err(ActionError::text(format!("cannot replace to directory {} with file", target.display())));
            }
            self.editor.remove(target)?;
        }
        let metadata = entry.metadata();
        let change = self.change.of(metadata);
        if metadata.file_type() == FileType::Socket {
            // As upstream: in a layer a socket means nothing, an empty file stands for it.
            drop(self.editor.create_file(target, metadata.permissions())?);
            return self.editor.set(target, &self.change.all_of(metadata)).map_err(info);
        }
        if metadata.file_type() == FileType::BlockDevice {
            // As upstream, whose copies of block devices are character devices: a layer with one would have another digest here.
            let mode = FileType::CharacterDevice.as_raw_mode() | metadata.permissions();
            self.editor.mknod(target, mode, metadata.rdev)?;
            return self.editor.set(target, &self.change.all_of(metadata)).map_err(info);
        }
        if metadata.is_file() && metadata.nlink > 1 {
            let key = (entry.tree(), metadata.ino);
            if let Some(first) = self.links.get(&key) {
                return self.editor.hard_link(first, target).map_err(|error| ActionError::from(error).within("failed to create hard link"));
            }
            self.links.insert(key, target.to_owned());
        }
        let placed = if change.is_empty() { self.editor.link_file(entry, target) } else { self.editor.copy_file(entry, target, &change) };
        placed.map(drop).map_err(|error| ActionError::from(error).within("failed to copy files"))
    }
}

impl Around {
    fn new(entry: &Entry, target: &Path, made: bool, fresh: bool) -> Self {
        Self { entry: entry.clone(), target: target.to_owned(), made, fresh, late: false }
    }
}

fn info(error: PathError) -> ActionError {
    ActionError::from(error).within("failed to copy file info")
}

fn matcher(name: &str, list: &[String]) -> Result<Option<Matcher>, ActionError> {
    if list.is_empty() {
        return Ok(None);
    }
    let failed = |error: MatcherError| ActionError::text(format!("invalid {name}: [{}]: {error}", list.join(" ")));
    Matcher::new(list).map(Some).map_err(failed)
}

fn failed(name: &'static str) -> impl FnOnce(MatcherError) -> ActionError {
    move |error| ActionError::text(format!("failed to match {name}: {error}"))
}
