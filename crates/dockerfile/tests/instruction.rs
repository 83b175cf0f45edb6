//! Every instruction's arguments, flags and error texts.
use dockerfile::instruction::*;
use dockerfile::lint::{Config, Linter};
use dockerfile::{Result, syntax};

fn parse_with(text: &str, linter: &Linter) -> Result<Dockerfile> {
    parse(&syntax::parse(text.as_bytes())?, linter)
}

/// The instruction behind a FROM.
fn one(text: &str) -> Result<Command> {
    let mut file = parse_with(&format!("FROM a\n{text}"), &Linter::silent())?;
    Ok(file.stages.remove(0).instructions.remove(0).command)
}

fn mount(text: &str) -> Result<Mount> {
    MountText::parse(text)?.expand(|word| Ok(word.replace("$x", "X")))
}

#[test]
fn errors() {
    for (text, want) in [
        ("RUN --mount=a --nope x", "unknown flag: --nope"),
        ("RUN --mont=a x", "unknown flag: --mont (did you mean mount?)"),
        ("RUN --network=none --network=host x", "duplicate flag specified: --network"),
        ("RUN --network x", "missing a value on flag: --network"),
        ("RUN --network=foo x", "invalid network mode \"foo\""),
        ("RUN --security=foo x", "security \"foo\" is not valid"),
        ("RUN --device=a=b,name=c x", "device name already set to a=b"),
        ("RUN --mount=type=bind,from=$x x", "'from' doesn't support variable expansion, define alias stage instead"),
        ("RUN --mount=a\\\"b x", "failed to parse csv mounts: parse error on line 1, column 2: bare \" in non-quoted field"),
        ("COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("ADD a", "ADD requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("COPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY a <<EOF\nEOF", "COPY cannot accept a heredoc as a destination"),
        ("COPY --keep-git-dir a b", "unknown flag: --keep-git-dir"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV =b", "ENV names can not be blank"),
        ("LABEL =b", "LABEL names can not be blank"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =b", "ARG names can not be blank"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("USER", "USER requires exactly one argument"),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ("VOLUME [\"a\", \" \"]", "VOLUME specified can not be an empty string"),
        ("SHELL", "SHELL requires at least one argument"),
        ("SHELL bash -c", "SHELL requires the arguments to be in JSON form"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD from x", "FROM isn't allowed as an ONBUILD trigger"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK FOO x", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
        ("HEALTHCHECK --interval=x CMD x", "time: invalid duration \"x\""),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --retries=a CMD x", "strconv.ParseInt: parsing \"a\": invalid syntax"),
        ("HEALTHCHECK --retries=9999999999 CMD x", "strconv.ParseInt: parsing \"9999999999\": value out of range"),
        ("CMD --x y", "unknown flag: --x"),
        ("FOOBAR x", "unknown instruction: FOOBAR"),
        ("RUNN x", "unknown instruction: RUNN (did you mean RUN?)"),
        ("copi x", "unknown instruction: copi (did you mean copy?)"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a as 1x", "invalid name for build stage: \"1x\", name can't start with a number or contain symbols"),
        ("FROM --target=x a", "unknown flag: --target"),
    ] {
        let error = one(text).unwrap_err();
        assert_eq!(error.to_string(), format!("dockerfile parse error on line 2: {want}"), "{text}");
        assert_eq!(error.locations()[0].unwrap().first, 2, "{text}");
    }
    let error = parse_with("RUN x\n", &Linter::silent()).unwrap_err();
    assert_eq!(error.to_string(), "no build stage in current context");
}

#[test]
fn values() {
    assert_eq!(one("expose 9 10 1/udp").unwrap(), Command::Expose(vec!["1/udp".into(), "10".into(), "9".into()]));
    assert_eq!(one("onbuild  run  x y").unwrap(), Command::OnBuild("run  x y".into()));
    assert_eq!(one("ONBUILD RUN <<A\nx\nA").unwrap(), Command::OnBuild("RUN <<A\nx\nA".into()));
    let Command::Healthcheck(check) = one("HEALTHCHECK --interval=1m30s --timeout=0 --retries=3 CMD [\"a\", \"b\"]").unwrap() else {
        panic!("not a health check")
    };
    assert_eq!((check.test.join(" "), check.interval, check.timeout, check.retries), ("CMD a b".into(), 90_000_000_000, 0, 3));
    let Command::Arg(args) = one("# b does things\nARG a b=c=d e=").unwrap() else { panic!("not an ARG") };
    let seen: Vec<_> = args.iter().map(|a| (a.key.as_str(), a.value.as_deref(), a.description.as_str())).collect();
    assert_eq!(seen, [("a", None, ""), ("b", Some("c=d"), "does things"), ("e", Some(""), "")]);
    let Command::Copy(copy) = one("COPY --from=x --parents --exclude=*.a --exclude=*.b --chmod=u+x a <<-F b/\n\tdata\n\tF\n").unwrap()
    else {
        panic!("not a COPY")
    };
    assert_eq!(copy.files.sources, ["a"]);
    assert_eq!(copy.files.inline, [InlineSource { path: "F".into(), data: "data\n".into(), expand: true }]);
    assert_eq!((copy.from.as_str(), copy.parents, copy.exclude.len(), copy.files.dest.as_str()), ("x", true, 2, "b/"));
    let Command::Add(add) = one("ADD --keep-git-dir=false --unpack a b").unwrap() else { panic!("not an ADD") };
    assert_eq!((add.keep_git_dir, add.unpack, add.link), (Some(false), Some(true), false));

    let file = parse_with("ARG v=1\n# web the server\nFROM --platform=$P img:$v AS Web\nRUN x\nFROM web\n", &Linter::silent()).unwrap();
    let web = &file.stages[0];
    assert_eq!((file.global_args.len(), file.stages.len(), web.instructions.len()), (1, 2, 1));
    assert_eq!(
        (web.name.as_str(), web.base.as_str(), web.platform.as_str(), web.description.as_str()),
        ("web", "img:$v", "$P", "the server")
    );
}

#[test]
fn mounts() {
    let cache = mount("type=cache,target=/a,id=$x,sharing=locked,uid=1,gid=2,mode=0700").unwrap();
    assert_eq!((cache.kind, cache.id.as_str(), cache.sharing), (MountKind::Cache, "X", Some(Sharing::Locked)));
    assert_eq!((cache.uid, cache.gid, cache.mode, cache.readonly), (Some(1), Some(2), Some(0o700), false));
    assert!(mount("target=/a").unwrap().readonly);
    assert!(!mount("target=/a,rw").unwrap().readonly);
    assert!(!mount("target=/a,ro=false").unwrap().readonly);
    assert!(mount("type=tmpfs,dst=/a,ro").unwrap().readonly);
    assert_eq!(mount("type=tmpfs,destination=/a,size=1.5g").unwrap().size, 1_610_612_736);
    assert!(mount("type=secret,id=a,required").unwrap().required);
    assert_eq!(mount("type=secret,src=a,env=B").unwrap().env.as_deref(), Some("B"));
    for (text, want) in [
        ("type=foo", "unsupported mount type \"foo\""),
        ("type=cachee", "unsupported mount type \"cachee\" (did you mean cache?)"),
        ("type=cache,sharing=x", "unsupported sharing value \"x\""),
        ("type=bind,size=1", "unexpected key 'size' for mount type 'bind'"),
        ("type=cache,required", "unexpected key 'required' for mount type 'cache'"),
        ("type=tmpfs,size=x", "invalid value for size: x"),
        ("ro=x", "invalid value for ro: x"),
        ("type=cache,uid=x", "invalid value x for uid"),
        ("type=cache,mode=999", "invalid value 999 for mode"),
        ("type=bind,mode=1", "mode not allowed for \"bind\" type mounts"),
        ("type=tmpfs,uid=1", "uid not allowed for \"tmpfs\" type mounts"),
        ("tarhet=/a", "unexpected key 'tarhet' in 'tarhet=/a' (did you mean target?)"),
        ("foo", "invalid field 'foo' must be a key=value pair"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=shared", "secret mount should not define sharing"),
        ("type=ssh,sharing=shared", "invalid cache sharing set for ssh mount"),
        ("", "failed to parse csv mounts: EOF"),
    ] {
        assert_eq!(mount(text).unwrap_err().to_string(), want, "{text}");
    }
    assert_eq!(MountText::parse("FROM=a,type=cache").unwrap().from, "a");
    assert_eq!(Device::parse("vendor.com/gpu=all,required").unwrap(), Device { name: "vendor.com/gpu=all".into(), required: true });
}

#[test]
fn lints_while_parsing() {
    let found = |text: &str, config: &str| {
        let linter = Linter::new(Config::parse(config).unwrap());
        parse_with(text, &linter).unwrap();
        linter.warnings().iter().map(|w| w.short()).collect::<Vec<_>>()
    };
    assert_eq!(
        found("FROM a as B\nMAINTAINER me\n", ""),
        [
            "StageNameCasing: Stage name 'B' should be lowercase (line 1)",
            "FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)",
            "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)",
        ]
    );
    assert!(found("FROM a as B\nMAINTAINER me\n", "skip=all").is_empty());
    assert_eq!(found("# check=skip=StageNameCasing,FromAsCasing\n\n# x\nFROM a as B\n", "").len(), 2);
    assert!(found("FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER me\n", "").is_empty());
    let described = "# nope\nFROM a AS b\n# nor this\nARG x y\n";
    assert!(found(described, "").is_empty());
    assert_eq!(
        found(described, "experimental=all"),
        [
            "InvalidDefinitionDescription: Comment for FROM should follow the format: `# b <description>` (line 2)",
            "InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>` (line 4)",
        ]
    );
}
