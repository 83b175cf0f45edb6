//! Lines, comments, continuations, directives, heredocs and argument forms.
#![allow(clippy::unwrap_used)]
use dockerfile::Lines;
use dockerfile::syntax::{self, Node};

fn nodes(text: &str) -> Vec<Node> {
    syntax::parse(text.as_bytes()).unwrap().nodes
}

fn args(text: &str) -> Vec<String> {
    nodes(text).remove(0).args
}

/// Text of the error and its first place.
fn error(text: &str) -> (String, Option<u32>) {
    let error = syntax::parse(text.as_bytes()).unwrap_err();
    (error.to_string(), error.locations().first().and_then(|l| l.map(|l| l.last)))
}

#[test]
fn lines_and_continuations() {
    let all = nodes("\u{feff}FROM a\r\n\n  # note\n   RUN one \\\n  # inside\n\n  two \\ \t\n three\nRUN x\\\\\nRUN y \\\n");
    let seen: Vec<_> = all.iter().map(|n| (n.original.as_str(), n.lines)).collect();
    let want = [
        ("FROM a", Lines::new(1, 1)),
        ("RUN one   two  three", Lines::new(4, 8)),
        ("RUN x\\\\", Lines::new(9, 9)),
        ("RUN y ", Lines::new(10, 10)),
    ];
    assert_eq!(seen, want);
    // An indented comment keeps its mark, as upstream has it.
    assert_eq!(all[1].comments, ["# note"]);
    let document = syntax::parse(b"FROM a\nRUN b \\\n\n c\n").unwrap();
    assert_eq!(document.empty_continuations, [Lines::single(4)]);
    // A mark alone on its line, and one in front of the end of the file.
    assert_eq!(args("RUN a \\\n\\\nb\\"), ["a b"]);
}

#[test]
fn comments_belong_to_the_next_instruction() {
    let all = nodes("# syntax=x\n# escape=`\n# one\n\n# two\nFROM a\n# gone\n#\n# three\nRUN b\nRUN c\n");
    let comments: Vec<_> = all.iter().map(|n| n.comments.clone()).collect();
    assert_eq!(comments, [vec!["one".to_owned(), "two".into()], vec!["three".into()], vec![]]);
}

#[test]
fn directives() {
    let document = syntax::parse(b"# escape = `\nFROM a\nRUN dir `\n c:\\\n").unwrap();
    assert_eq!((document.escape, document.nodes[1].args[0].as_str()), ('`', "dir  c:\\"));
    assert_eq!(error("# escape=x\nFROM a").0, "invalid escape token 'x' does not match ` or \\");
    assert_eq!(error("# syntax=a\n# syntax=b\nFROM a").0, "only one syntax parser directive can be used");
    // Anything else ends them.
    assert_eq!(syntax::parse(b"# hello\n# escape=`\nFROM a").unwrap().escape, '\\');
    assert_eq!(syntax::parse(b"\n# escape=`\nFROM a").unwrap().escape, '\\');

    let find = |text: &str| syntax::find_syntax(text.as_bytes()).map(|d| (d.value, d.line.first));
    assert_eq!(find("# syntax = docker/dockerfile:1 a=b\n"), Some(("docker/dockerfile:1 a=b".into(), 1)));
    assert_eq!(find("#!/usr/bin/env x\n// syntax=some/image\n{}"), Some(("some/image".into(), 2)));
    assert_eq!(find("{\"syntax\": \"json/image\"}"), Some(("json/image".into(), 0)));
    assert_eq!(find("#check=skip=all\n#Syntax=x"), Some(("x".into(), 2)));
    assert_eq!(find("FROM a\n# syntax=x"), None);
    assert_eq!(syntax::find_directive("check", b"# check=error=true;skip=X").unwrap().value, "error=true;skip=X");
}

#[test]
fn argument_forms() {
    assert_eq!(args("COPY a  b\tc"), ["a", "b", "c"]);
    assert_eq!(args("COPY [\"a b\", \"c\"]"), ["a b", "c"]);
    assert_eq!(args("RUN  echo  'a  b' "), ["echo  'a  b'"]);
    let run = nodes("RUN [\"a\", \"\\u00e9\"]").remove(0);
    assert_eq!((run.args, run.json), (vec!["a".to_owned(), "é".into()], true));
    assert_eq!(args("CMD []"), Vec::<String>::new());
    assert_eq!(args("RUN [ -f x ]"), ["[ -f x ]"]);
    assert_eq!(args("RUN ['a']"), ["['a']"]);
    assert_eq!(args("ENV a=1 b='x y' c=\"\\\" \""), ["a", "1", "=", "b", "'x y'", "=", "c", "\"\\\" \"", "="]);
    assert_eq!(args("ENV key some  value"), ["key", "some  value", ""]);
    assert_eq!(args("ARG a b=c 'd e'=f"), ["a", "b=c", "'d e'=f"]);
    assert_eq!(args("WORKDIR /a b"), ["/a b"]);
    assert_eq!(args("HEALTHCHECK --interval=1s CMD curl x"), ["CMD", "curl x"]);
    assert_eq!(args("HEALTHCHECK NONE"), ["NONE"]);
    let trigger = nodes("ONBUILD COPY --from=x a b").remove(0);
    assert_eq!(trigger.args, ["COPY", "a", "b"]);
    assert_eq!(trigger.inner.unwrap().flags, ["--from=x"]);
    let copy = nodes("COPY --chown=a:b --link --exclude='x y' src -- dst").remove(0);
    assert_eq!((copy.flags.join("|"), copy.args.join("|")), ("--chown=a:b|--link|--exclude=x y".into(), "src|--|dst".into()));
}

#[test]
fn heredocs() {
    let run = nodes("RUN <<EOF\n  echo $a\n\tEOF\nEOF\nRUN x").remove(0);
    assert_eq!(run.lines, Lines::new(1, 4));
    let doc = &run.heredocs[0];
    assert_eq!((doc.name.as_str(), doc.content.as_str(), doc.expand, doc.chomp), ("EOF", "  echo $a\n\tEOF\n", true, false));

    let copy = nodes("COPY <<-'A B' <<\"two\"x /dst/\n\tone\n\tA B\n2\ntwox\n").remove(0);
    let seen: Vec<_> = copy.heredocs.iter().map(|d| (d.name.as_str(), d.content.as_str(), d.expand, d.chomp)).collect();
    assert_eq!(seen, [("A B", "\tone\n", false, true), ("twox", "2\n", false, false)]);
    assert_eq!(syntax::chomp("\t\ta\n b\n\tc"), "a\n b\nc");

    assert_eq!(nodes("RUN 3<<EOF cat\nx\nEOF")[0].heredocs[0].file_descriptor, 3);
    assert_eq!(nodes("ONBUILD RUN <<EOF\nx\nEOF")[0].heredocs.len(), 1);
    // Not these.
    assert!(nodes("RUN [\"<<EOF\"]\n").remove(0).heredocs.is_empty());
    assert!(nodes("RUN cat <<<EOF\n").remove(0).heredocs.is_empty());
    assert!(nodes("RUN echo '<<EOF'\n").remove(0).heredocs.is_empty());
    assert!(nodes("ENV a=<<EOF\n").remove(0).heredocs.is_empty());
    assert_eq!(error("FROM a\nRUN <<EOF\nx"), ("unterminated heredoc".into(), Some(3)));
}

#[test]
fn errors() {
    assert_eq!(error(""), ("file with no instructions".into(), Some(0)));
    assert_eq!(error("# a\n\n"), ("file with no instructions".into(), Some(2)));
    assert_eq!(error("FROM a\nENV x"), ("ENV must have two arguments".into(), Some(2)));
    let wrong = "Syntax error - can't find = in \"b\". Must be of the form: name=value";
    assert_eq!(error("FROM a\nLABEL a=1 b"), (wrong.into(), Some(2)));
    let nested = "when using JSON array syntax, arrays must be comprised of strings only";
    assert_eq!(error("FROM a\nCMD [1]"), (nested.into(), Some(2)));
    let long = format!("FROM a\nRUN {}\n", "x".repeat(70_000));
    assert_eq!(error(&long), ("dockerfile line greater than max allowed size of 65535".into(), Some(1)));
    // The longest line that is allowed.
    assert_eq!(nodes(&format!("RUN {}\n", "x".repeat(65_531))).len(), 1);
}
