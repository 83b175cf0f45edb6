//! What the command line says about itself.
use super::{Command, Mode};

pub fn overview(mode: Mode) -> String {
    let program = if mode == Mode::Buildctl { "buildctl" } else { "kiln" };
    let own = if mode == Mode::Kiln {
        "\n   history          ls, logs, inspect, why, trace, rm, pin, unpin: the builds of the past\n   daemon           run the daemon (see `kiln daemon --help`)"
    } else {
        ""
    };
    format!(
        "NAME: {program} - build utility

USAGE: {program} [global options] command [command options]

COMMANDS:
   build, b         build
   du               disk usage
   prune            clean up build cache
   prune-histories  clean up build histories
   debug            workers, info, monitor, logs, ctl, get, histories, dump-llb
   dial-stdio       standard input and output become a connection to the daemon{own}

GLOBAL OPTIONS:
   --addr ADDRESS   unix://, tcp://, docker-container://, podman-container://, nerdctl-container://, kube-pod:// or ssh:// ($BUILDKIT_HOST)
   --tlscacert, --tlscert, --tlskey FILE, --tlsdir DIR, --tlsservername NAME
   --timeout SECONDS, --wait, --debug, --version, --help{}",
        if mode == Mode::Kiln { "\n   --root DIR       where a daemon that is started by itself keeps its cache" } else { "" }
    )
}

pub fn of(command: Command, mode: Mode) -> String {
    match command {
        Command::Build if mode == Mode::Kiln => format!("{EVERYDAY}\n\nor, as buildctl:\n\n{BUILD}"),
        Command::Build => BUILD.to_owned(),
        Command::DiskUsage => "USAGE: du [--filter F] [--verbose] [--format json]".to_owned(),
        Command::Prune => "USAGE: prune [--all] [--keep-duration D] [--keep-storage MB] [--keep-storage-min MB] [--free-storage MB] [--filter F] [--verbose] [--format json]".to_owned(),
        Command::History(_) => HISTORY.to_owned(),
        _ => overview(mode),
    }
}

const EVERYDAY: &str = "USAGE: kiln build [options] DIRECTORY

   -t, --tag NAME           name of the image; may be repeated
                            - for one directory: a Dockerfile, or an archive of a context, on standard input
   -f, --file FILE          Dockerfile (default DIRECTORY/Dockerfile); - for standard input
   --target STAGE           --build-arg NAME[=VALUE]     --label K=V
   --platform OS/ARCH[,..]  --build-context NAME=VALUE   --no-cache     --pull
   --push                   push the image to its registry
   -o, --output DEST        a directory, or type=local|tar|oci|docker|image,...
   --secret id=X,src=FILE   --ssh default                --cache-from REF|type=..  --cache-to REF|type=..
   --progress auto|plain|tty|rawjson|quiet               --metadata-file FILE      --iidfile FILE
   --why                    tell at the end why steps ran that had run before";

const HISTORY: &str = "USAGE: kiln history [COMMAND] [REF]

   ls [--filter F] [--format json]   builds that have ended, the newest first; status==error, duration>1m, startedAt>24h filter
   logs, inspect, why, trace [REF]   of one build, the newest where none is named; its reference may be cut short
   rm REF.. | --all                  pin REF     unpin REF";

const BUILD: &str = "USAGE: build [options]

   --frontend NAME --opt K=V --local NAME=DIR      run a frontend; without one, a definition is read from standard input
   --output type=TYPE,..                           --oci-layout NAME=DIR
   --export-cache type=TYPE,.. --import-cache ..   --no-cache
   --secret id=X,src=FILE --ssh default            --allow ENTITLEMENT
   --progress auto|plain|tty|rawjson|quiet         --trace FILE
   --metadata-file FILE --ref-file FILE            --source-policy-file FILE --proxy-network";
