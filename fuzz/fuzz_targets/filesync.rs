//! A client that sends what it likes in a file sync. The input is a script, one packet a line:
//! `s PATH KIND MODE SIZE TIME LINK` with tabs between (KIND one of `fdlcbps`), `e` the end of the list, `d ID DATA`, `r ID`, `f`, `x TEXT`;
//! `=` starts a second sync on top of the first.
#![no_main]
use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use fault::Result;
use libfuzzer_sys::fuzz_target;
use session::{FileStream, Packet, PacketSink, PacketSource, Stat, go_mode};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime"));

fuzz_target!(|text: &str| {
    let scratch = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let home = tempfile::tempdir_in(scratch).expect("a temporary directory can be made");
    let root = home.path().join("inner");
    fs::create_dir(&root).expect("directories can be made");
    fs::write(home.path().join("canary"), "alive").expect("files can be written");
    let (first, second) = text.split_once("\n=\n").map_or((text, None), |(first, second)| (first, Some(second)));
    RUNTIME.block_on(async {
        let one = root.join("one");
        let index = sources::fuzzing::receive(Box::new(Script::read(first)), &one, None).await;
        if let (Ok(Some(index)), Some(second)) = (index, second) {
            let _ = sources::fuzzing::receive(Box::new(Script::read(second)), &root.join("two"), Some((&one, &index))).await;
        }
    });
    assert_eq!(fs::read(home.path().join("canary")).expect("the canary can be read"), b"alive");
    assert_eq!(fs::read_dir(home.path()).expect("the directory is still there").count(), 2, "something was made outside");
    for entry in fs::read_dir(&root).expect("the directory is still there") {
        let name = entry.expect("an entry").file_name();
        assert!(name == "one" || name == "two", "{name:?} was made outside");
    }
});

struct Script(VecDeque<Packet>);

impl Script {
    fn read(text: &str) -> Self {
        Self(text.lines().take(400).filter_map(packet).collect())
    }
}

fn packet(line: &str) -> Option<Packet> {
    let mut fields = line.split('\t');
    let mut next = || fields.next().unwrap_or_default();
    Some(match next() {
        "s" => {
            let path = next().to_owned();
            let kind = match next() {
                "d" => go_mode::DIR,
                "l" => go_mode::SYMLINK,
                "c" => go_mode::DEVICE | go_mode::CHAR_DEVICE,
                "b" => go_mode::DEVICE,
                "p" => go_mode::NAMED_PIPE,
                "s" => go_mode::SOCKET,
                _ => 0,
            };
            let mode = kind | u32::from_str_radix(next(), 8).unwrap_or(0o644);
            let (size, mod_time) = (next().parse().unwrap_or(0), next().parse().unwrap_or(0));
            let linkname = next().to_owned();
            let xattrs = next().split_once('=').map(|(key, value)| (key.to_owned(), Bytes::copy_from_slice(value.as_bytes())));
            Packet::Stat(Stat { path, mode, size, mod_time, linkname, xattrs: xattrs.into_iter().collect(), ..Stat::default() })
        }
        "e" => Packet::StatEnd,
        "d" => Packet::Data { id: next().parse().unwrap_or(0), data: Bytes::copy_from_slice(next().as_bytes()) },
        "r" => Packet::Request { id: next().parse().unwrap_or(0) },
        "f" => Packet::Fin,
        "x" => Packet::Error(next().to_owned()),
        _ => return None,
    })
}

struct Sink;

#[async_trait::async_trait]
impl FileStream for Script {
    async fn send(&mut self, _: Packet) -> Result<()> {
        Ok(())
    }

    async fn receive(&mut self) -> Result<Option<Packet>> {
        Ok(self.0.pop_front())
    }

    fn split(self: Box<Self>) -> (Box<dyn PacketSink>, Box<dyn PacketSource>) {
        (Box::new(Sink), self)
    }
}

#[async_trait::async_trait]
impl PacketSink for Sink {
    async fn send(&mut self, _: Packet) -> Result<()> {
        Ok(())
    }
}

#[async_trait::async_trait]
impl PacketSource for Script {
    async fn receive(&mut self) -> Result<Option<Packet>> {
        Ok(self.0.pop_front())
    }
}
