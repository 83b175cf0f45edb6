use super::flags::{Flags, Kind};
use super::units::duration;
use super::*;
use crate::lint::{self, Linter};
use crate::syntax::{Document, Node, chomp, parse_mark};
use crate::text::{nearest, quote};
use crate::{Error, Result};

/// All stages, and the ARGs in front of the first.
#[derive(Debug, Clone, Default)]
pub struct Dockerfile {
    pub stages: Vec<Stage>,
    pub global_args: Vec<Instruction>,
}

enum Parsed {
    Stage(Stage),
    Instruction(Instruction),
}

pub fn parse(document: &Document, linter: &Linter) -> Result<Dockerfile> {
    let mut file = Dockerfile::default();
    for node in &document.nodes {
        let parsed = parse_node(node, linter).map_err(|e| e.context(format!("dockerfile parse error on line {}", node.lines.first)))?;
        match (parsed, file.stages.last_mut()) {
            (Parsed::Stage(stage), _) => file.stages.push(stage),
            (Parsed::Instruction(instruction), Some(stage)) => stage.instructions.push(instruction),
            (Parsed::Instruction(instruction), None) if matches!(instruction.command, Command::Arg(_)) => {
                file.global_args.push(instruction)
            }
            (Parsed::Instruction(_), None) => return Err(Error::new("no build stage in current context").at(node.lines)),
        }
    }
    Ok(file)
}

/// A single instruction that stands alone: what ONBUILD left.
pub(crate) fn parse_one(node: &Node) -> Result<Instruction> {
    match parse_node(node, &Linter::silent())? {
        Parsed::Instruction(instruction) => Ok(instruction),
        Parsed::Stage(_) => Err(Error::new("*instructions.Stage is not a command type").at(node.lines)),
    }
}

fn parse_node(node: &Node, linter: &Linter) -> Result<Parsed> {
    let linter = linter.below(&node.comments);
    let parsed = if node.keyword.eq_ignore_ascii_case("from") {
        from(node, &linter).map(Parsed::Stage)
    } else {
        command(node, &linter).map(|command| {
            Parsed::Instruction(Instruction {
                command,
                keyword: node.keyword.clone(),
                code: node.original.trim().to_owned(),
                lines: node.lines,
                comments: node.comments.clone(),
            })
        })
    };
    parsed.map_err(|e| e.at(node.lines))
}

fn command(node: &Node, linter: &Linter) -> Result<Command> {
    Ok(match node.keyword.to_lowercase().as_str() {
        "add" => Command::Add(Box::new(add(node)?)),
        "arg" => Command::Arg(arg(node, linter)?),
        "cmd" => Command::Cmd(no_flags(node, |node| Ok(command_line(node)))?),
        "copy" => Command::Copy(Box::new(copy(node)?)),
        "entrypoint" => Command::Entrypoint(no_flags(node, |node| Ok(command_line(node)))?),
        "env" => Command::Env(no_flags(node, |node| pairs(node, "ENV"))?),
        "expose" => Command::Expose(expose(node)?),
        "healthcheck" => Command::Healthcheck(healthcheck(node)?),
        "label" => Command::Label(no_flags(node, |node| pairs(node, "LABEL"))?),
        "maintainer" => {
            linter.warn(&lint::MAINTAINER_DEPRECATED, node.lines, || "Maintainer instruction is deprecated in favor of using label".into());
            Command::Maintainer(only_argument(node, "MAINTAINER")?)
        }
        "onbuild" => Command::OnBuild(on_build(node)?),
        "run" => Command::Run(Box::new(run(node)?)),
        "shell" => Command::Shell(no_flags(node, shell)?),
        "stopsignal" => match node.args.as_slice() {
            [signal] => Command::StopSignal(signal.clone()),
            _ => return Err(exactly_one("STOPSIGNAL")),
        },
        "user" => Command::User(only_argument(node, "USER")?),
        "volume" => Command::Volume(volume(node)?),
        "workdir" => Command::Workdir(only_argument(node, "WORKDIR")?),
        _ => {
            let guess = nearest(&node.keyword, KEYWORDS, false);
            return Err(Error::new(format!("unknown instruction: {}", node.keyword)).suggest(guess));
        }
    })
}

fn no_flags<T>(node: &Node, parse: impl FnOnce(&Node) -> Result<T>) -> Result<T> {
    Flags::none(&node.flags)?;
    parse(node)
}

fn at_least_one(command: &str) -> Error {
    Error::new(format!("{command} requires at least one argument"))
}

fn exactly_one(command: &str) -> Error {
    Error::new(format!("{command} requires exactly one argument"))
}

fn only_argument(node: &Node, command: &str) -> Result<String> {
    match node.args.as_slice() {
        [argument] => no_flags(node, |_| Ok(argument.clone())),
        _ => Err(exactly_one(command)),
    }
}

fn from(node: &Node, linter: &Linter) -> Result<Stage> {
    let args = &node.args;
    if let [_, _, name] = args.as_slice()
        && name.to_lowercase() != *name
    {
        linter.warn(&lint::STAGE_NAME_CASING, node.lines, || format!("Stage name '{name}' should be lowercase"));
    }
    if let [_, word, _, ..] = args.as_slice()
        && !same_case(&node.keyword, word)
    {
        linter.warn(&lint::FROM_AS_CASING, node.lines, || format!("'{word}' and '{}' keywords' casing do not match", node.keyword));
    }
    let name = match args.as_slice() {
        [_, word, name] if word.eq_ignore_ascii_case("as") => stage_name(name)?,
        [_] => String::new(),
        _ => return Err(Error::new("FROM requires either one or three arguments")),
    };
    let flags = Flags::parse(&node.flags, &[("platform", Kind::Text)])?;
    if !name.is_empty() {
        check_description("FROM", &[&name], node, linter);
    }
    Ok(Stage {
        description: description(&node.comments, &name),
        name,
        base: args[0].clone(),
        platform: flags.string("platform"),
        keyword: node.keyword.clone(),
        code: node.original.trim().to_owned(),
        lines: Some(node.lines),
        comments: node.comments.clone(),
        instructions: Vec::new(),
    })
}

/// A keyword of mixed case is another rule's matter.
fn same_case(keyword: &str, word: &str) -> bool {
    if keyword == keyword.to_lowercase() {
        return word == word.to_lowercase();
    }
    keyword != keyword.to_uppercase() || word == word.to_uppercase()
}

fn stage_name(text: &str) -> Result<String> {
    let name = text.to_lowercase();
    let valid = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
    if !valid {
        let text = quote(text);
        return Err(Error::new(format!("invalid name for build stage: {text}, name can't start with a number or contain symbols")));
    }
    Ok(name)
}

/// `# name text` above a definition says what it is for.
fn description(comments: &[String], name: &str) -> String {
    let find = |line: &String| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')).map(str::to_owned);
    if name.is_empty() { String::new() } else { comments.iter().find_map(find).unwrap_or_default() }
}

fn check_description(keyword: &str, names: &[&str], node: &Node, linter: &Linter) {
    let (Some(last), Some(first_name)) = (node.comments.last(), names.first()) else { return };
    if names.contains(&last.split(' ').next().unwrap_or_default()) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first_name };
    linter.warn(&lint::INVALID_DEFINITION_DESCRIPTION, node.lines, || {
        format!("Comment for {keyword} should follow the format: `# {example} <description>`")
    });
}

fn pairs(node: &Node, command: &str) -> Result<Vec<Pair>> {
    if node.args.is_empty() {
        return Err(at_least_one(command));
    }
    let pair = |three: &[String]| match three {
        [key, ..] if key.is_empty() => Err(Error::new(format!("{command} names can not be blank"))),
        [key, value, delimiter] => Ok(Pair { key: key.clone(), value: value.clone(), legacy: delimiter.is_empty() }),
        _ => Err(Error::new(format!("Bad input to {command}, too many arguments"))),
    };
    node.args.chunks(3).map(pair).collect()
}

fn arg(node: &Node, linter: &Linter) -> Result<Vec<Arg>> {
    if node.args.is_empty() {
        return Err(at_least_one("ARG"));
    }
    let parse = |text: &String| {
        let (key, value) = text.split_once('=').map_or((text.as_str(), None), |(key, value)| (key, Some(value.to_owned())));
        if key.is_empty() && value.is_some() {
            return Err(Error::new("ARG names can not be blank"));
        }
        Ok(Arg { key: key.to_owned(), value, description: description(&node.comments, key) })
    };
    let args = node.args.iter().map(parse).collect::<Result<Vec<_>>>()?;
    check_description("ARG", &args.iter().map(|a| a.key.as_str()).collect::<Vec<_>>(), node, linter);
    Ok(args)
}

fn command_line(node: &Node) -> CommandLine {
    let file = |doc: &crate::syntax::Heredoc| InlineFile { name: doc.name.clone(), data: doc.content.clone(), chomp: doc.chomp };
    CommandLine { args: node.args.clone(), heredocs: node.heredocs.iter().map(file).collect(), shell: !node.json }
}

fn run(node: &Node) -> Result<Run> {
    let known = [("device", Kind::List), ("mount", Kind::List), ("network", Kind::Text), ("security", Kind::Text)];
    let flags = Flags::parse(&node.flags, &known)?;
    Ok(Run {
        line: command_line(node),
        devices: flags.list("device").iter().map(|text| Device::parse(text)).collect::<Result<_>>()?,
        mounts: flags.list("mount").iter().map(|text| MountText::parse(text)).collect::<Result<_>>()?,
        network: match flags.text("network") {
            None | Some("default") => RunNetwork::Default,
            Some("none") => RunNetwork::None,
            Some("host") => RunNetwork::Host,
            Some(other) => return Err(Error::new(format!("invalid network mode {}", quote(other)))),
        },
        security: match flags.text("security") {
            None | Some("sandbox") => RunSecurity::Sandbox,
            Some("insecure") => RunSecurity::Insecure,
            Some(other) => return Err(Error::new(format!("security {} is not valid", quote(other)))),
        },
    })
}

fn files(node: &Node, command: &str) -> Result<Files> {
    let (dest, sources) = node.args.split_last().expect("callers check that there are two arguments");
    let mark = |word: &str| parse_mark(word).ok().flatten();
    if mark(dest).is_some() {
        return Err(Error::new(format!("{command} cannot accept a heredoc as a destination")));
    }
    let mut files = Files { dest: dest.clone(), ..Files::default() };
    for source in sources {
        let Some(doc) = mark(source) else {
            files.sources.push(source.clone());
            continue;
        };
        let content = node.heredocs.iter().rfind(|known| known.name == doc.name).map_or("", |known| &known.content);
        let data = if doc.chomp { chomp(content) } else { content.to_owned() };
        files.inline.push(InlineSource { path: doc.name, data, expand: doc.expand });
    }
    Ok(files)
}

fn two_arguments(node: &Node, command: &str) -> Result<()> {
    if node.args.len() < 2 {
        let why = "requires at least two arguments, but only one was provided. Destination could not be determined";
        return Err(Error::new(format!("{command} {why}")));
    }
    Ok(())
}

fn add(node: &Node) -> Result<Add> {
    two_arguments(node, "ADD")?;
    let known = [
        ("chown", Kind::Text),
        ("chmod", Kind::Text),
        ("link", Kind::Bool),
        ("keep-git-dir", Kind::Bool),
        ("checksum", Kind::Text),
        ("unpack", Kind::Bool),
        ("exclude", Kind::List),
    ];
    let flags = Flags::parse(&node.flags, &known)?;
    Ok(Add {
        files: files(node, "ADD")?,
        chown: flags.string("chown"),
        chmod: flags.string("chmod"),
        link: flags.bool("link").unwrap_or(false),
        exclude: flags.list("exclude"),
        keep_git_dir: flags.bool("keep-git-dir"),
        checksum: flags.string("checksum"),
        unpack: flags.bool("unpack"),
    })
}

fn copy(node: &Node) -> Result<CopyFiles> {
    two_arguments(node, "COPY")?;
    let known = [
        ("chown", Kind::Text),
        ("from", Kind::Text),
        ("chmod", Kind::Text),
        ("link", Kind::Bool),
        ("exclude", Kind::List),
        ("parents", Kind::Bool),
    ];
    let flags = Flags::parse(&node.flags, &known)?;
    Ok(CopyFiles {
        files: files(node, "COPY")?,
        from: flags.string("from"),
        chown: flags.string("chown"),
        chmod: flags.string("chmod"),
        link: flags.bool("link").unwrap_or(false),
        exclude: flags.list("exclude"),
        parents: flags.bool("parents").unwrap_or(false),
    })
}

fn on_build(node: &Node) -> Result<String> {
    if node.args.is_empty() {
        return Err(at_least_one("ONBUILD"));
    }
    Flags::none(&node.flags)?;
    match node.args[0].trim().to_uppercase().as_str() {
        "ONBUILD" => return Err(Error::new("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")),
        trigger @ ("MAINTAINER" | "FROM") => return Err(Error::new(format!("{trigger} isn't allowed as an ONBUILD trigger"))),
        _ => {}
    }
    let mut trigger = node.original.trim_start()["ONBUILD".len()..].trim_start().to_owned();
    for doc in &node.heredocs {
        trigger.push('\n');
        trigger.push_str(&doc.content);
        trigger.push_str(&doc.name);
    }
    Ok(trigger)
}

fn expose(node: &Node) -> Result<Vec<String>> {
    if node.args.is_empty() {
        return Err(at_least_one("EXPOSE"));
    }
    Flags::none(&node.flags)?;
    let mut ports = node.args.clone();
    ports.sort();
    Ok(ports)
}

fn volume(node: &Node) -> Result<Vec<String>> {
    if node.args.is_empty() {
        return Err(at_least_one("VOLUME"));
    }
    Flags::none(&node.flags)?;
    let volume = |text: &String| match text.trim() {
        "" => Err(Error::new("VOLUME specified can not be an empty string")),
        path => Ok(path.to_owned()),
    };
    node.args.iter().map(volume).collect()
}

fn shell(node: &Node) -> Result<Vec<String>> {
    if node.args.is_empty() {
        return Err(at_least_one("SHELL"));
    }
    if !node.json {
        return Err(Error::new("SHELL requires the arguments to be in JSON form"));
    }
    Ok(node.args.clone())
}

fn healthcheck(node: &Node) -> Result<oci::Healthcheck> {
    let Some((kind, args)) = node.args.split_first() else { return Err(at_least_one("HEALTHCHECK")) };
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        if !args.is_empty() {
            return Err(Error::new("HEALTHCHECK NONE takes no arguments"));
        }
        return Ok(oci::Healthcheck { test: vec![kind], ..Default::default() });
    }
    let known = ["interval", "timeout", "start-period", "start-interval", "retries"].map(|name| (name, Kind::Text));
    let flags = Flags::parse(&node.flags, &known)?;
    if kind != "CMD" {
        return Err(Error::new(format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&kind))));
    }
    if args.is_empty() {
        return Err(Error::new("Missing command after HEALTHCHECK CMD"));
    }
    let how = if node.json { "CMD" } else { "CMD-SHELL" };
    Ok(oci::Healthcheck {
        test: std::iter::once(how.to_owned()).chain(args.iter().cloned()).collect(),
        interval: interval(&flags, "interval")?,
        timeout: interval(&flags, "timeout")?,
        start_period: interval(&flags, "start-period")?,
        start_interval: interval(&flags, "start-interval")?,
        retries: retries(&flags)?,
    })
}

fn interval(flags: &Flags, name: &str) -> Result<i64> {
    let text = flags.string(name);
    if text.is_empty() {
        return Ok(0);
    }
    let nanos = duration(&text)?;
    if nanos != 0 && nanos < 1_000_000 {
        return Err(Error::new(format!("Interval {} cannot be less than 1ms", quote(name))));
    }
    Ok(nanos)
}

fn retries(flags: &Flags) -> Result<i64> {
    let text = flags.string("retries");
    if text.is_empty() {
        return Ok(0);
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(&text);
    let why = if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { "invalid syntax" } else { "value out of range" };
    let wrong = |_| Error::new(format!("strconv.ParseInt: parsing {}: {why}", quote(&text)));
    let retries: i32 = text.parse().map_err(wrong)?;
    if retries < 0 {
        return Err(Error::new(format!("--retries cannot be negative ({retries})")));
    }
    Ok(i64::from(retries))
}
