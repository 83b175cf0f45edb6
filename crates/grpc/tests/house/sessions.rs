use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use client::files::Mode;
use client::session::{Agent, BlobDir, Output, Secret, Session, auth};
use fault::Kind;
use grpc::Sessions;
use job::Sessions as _;
use oci::Digest;
use session::{FileStream, FilesRequest, Packet, Stat, go_mode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::daemon::house;

async fn open(sessions: &Sessions, client: &client::Client, offered: Session) -> (client::session::Running, Arc<dyn session::Session>) {
    let id = offered.id().to_owned();
    let running = offered.open(client).await.unwrap();
    let session = sessions.get(&format!("prefix:{id}")).await.unwrap();
    (running, session)
}

/// Receives a whole tree as a daemon would: every file is requested.
async fn receive(mut stream: Box<dyn FileStream>) -> fault::Result<BTreeMap<String, (Stat, Vec<u8>)>> {
    let (mut stats, mut data, mut open) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new(), 0);
    let mut announced = false;
    loop {
        match stream.receive().await? {
            Some(Packet::Stat(stat)) => {
                let id = stats.len() as u32;
                if stat.mode & !go_mode::PERM == 0 && stat.linkname.is_empty() {
                    stream.send(Packet::Request { id }).await?;
                    data.insert(id, Vec::new());
                    open += 1;
                }
                stats.push(stat);
            }
            Some(Packet::StatEnd) => announced = true,
            Some(Packet::Data { id, data: chunk }) if chunk.is_empty() => {
                assert!(data.contains_key(&id));
                open -= 1;
            }
            Some(Packet::Data { id, data: chunk }) => data.get_mut(&id).unwrap().extend_from_slice(&chunk),
            Some(Packet::Fin) => {
                assert_eq!(stream.receive().await?, None, "the stream ends after the last packet");
                let stats = stats.into_iter().enumerate();
                return Ok(stats.map(|(id, stat)| (stat.path.clone(), (stat, data.remove(&(id as u32)).unwrap_or_default()))).collect());
            }
            other => panic!("{other:?}"),
        }
        if announced && open == 0 {
            announced = false;
            stream.send(Packet::Fin).await?;
        }
    }
}

#[tokio::test]
async fn files_arrive_filtered_and_whole() {
    let (_daemon, sessions, client) = house().await;
    let root = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    std::fs::create_dir(root.path().join("ü")).unwrap();
    std::fs::write(root.path().join("ü/large"), &large).unwrap();
    std::fs::write(root.path().join("small"), "x").unwrap();
    std::fs::write(root.path().join("empty"), "").unwrap();
    std::fs::write(root.path().join("left out"), "x").unwrap();
    std::os::unix::fs::symlink("small", root.path().join("link")).unwrap();
    let offered = Session::new("key").files([("context".to_owned(), root.path().to_owned())].into());
    let (_running, session) = open(&sessions, &client, offered).await;
    assert_eq!(session.shared_key(), "key");
    assert!(session.supports("/MOBY.filesync.v1.FileSync/diffcopy") && !session.supports("/x/y"));
    let request =
        FilesRequest { name: "context".into(), exclude_patterns: vec!["left out".into(), "ö*".into()], ..FilesRequest::default() };
    let got = receive(session.files(request).await.unwrap()).await.unwrap();
    assert_eq!(got.keys().collect::<Vec<_>>(), ["empty", "link", "small", "ü", "ü/large"]);
    assert!(got["ü/large"].1 == large && got["small"].1 == b"x" && got["empty"].1.is_empty());
    assert_eq!(got["link"].0.linkname, "small");

    let refused =
        receive(session.files(FilesRequest { name: "other".into(), ..FilesRequest::default() }).await.unwrap()).await.unwrap_err();
    assert_eq!(refused.to_string(), "NotFound: no access allowed to dir \"other\"");
}

#[tokio::test]
async fn a_receiver_that_goes_away_does_not_hang_the_sender() {
    let (_daemon, sessions, client) = house().await;
    let root = tempfile::tempdir().unwrap();
    for n in 0..2000 {
        std::fs::write(root.path().join(format!("file-{n}")), vec![0; 3000]).unwrap();
    }
    let offered = Session::new("").files([("c".to_owned(), root.path().to_owned())].into());
    let (_running, session) = open(&sessions, &client, offered).await;
    let request = || FilesRequest { name: "c".into(), ..FilesRequest::default() };
    drop(session.files(request()).await.unwrap());
    let mut stream = session.files(request()).await.unwrap();
    stream.receive().await.unwrap();
    drop(stream);
    assert_eq!(receive(session.files(request()).await.unwrap()).await.unwrap().len(), 2000, "the session still works");
}

#[tokio::test]
async fn wrong_packets_end_the_transfer_with_an_error() {
    let (_daemon, sessions, client) = house().await;
    let root = tempfile::tempdir().unwrap();
    let offered = Session::new("").files([("c".to_owned(), root.path().to_owned())].into());
    let (_running, session) = open(&sessions, &client, offered).await;
    for packet in [Packet::Request { id: 7 }, Packet::StatEnd, Packet::Error("no".into())] {
        let mut stream = session.files(FilesRequest { name: "c".into(), ..FilesRequest::default() }).await.unwrap();
        stream.send(packet.clone()).await.unwrap();
        let outcome = loop {
            match stream.receive().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        assert!(outcome.is_err(), "{packet:?}");
    }
}

#[tokio::test]
async fn secrets_and_their_absence() {
    let (_daemon, sessions, client) = house().await;
    let secrets =
        [("a".to_owned(), Secret::Value(Bytes::from_static(b"s3cret"))), ("b".to_owned(), Secret::File("/does/not/exist".into()))];
    let (_running, session) = open(&sessions, &client, Session::new("").secrets(secrets.into())).await;
    assert_eq!(session.secret("a").await.unwrap().unwrap(), "s3cret");
    assert_eq!(session.secret("c").await.unwrap(), None);
    assert!(session.secret("b").await.is_err());
    let (_other, bare) = open(&sessions, &client, Session::new("")).await;
    assert_eq!(bare.secret("a").await.unwrap(), None, "a client without secrets has none");
    assert!(!bare.ssh_available("default").await.unwrap());
    assert_eq!(bare.token_authority("h", b"salt").await.unwrap(), None);
    assert_eq!(bare.find_exporters(&BTreeMap::new(), &[]).await.unwrap(), []);
    assert_eq!(bare.files(FilesRequest::default()).await.err().unwrap().to_string(), "no local sources enabled");
}

#[tokio::test]
async fn credentials_come_from_the_lookup() {
    let (_daemon, sessions, client) = house().await;
    let config = auth::DockerConfig::parse(r#"{"auths": {"r.example": {"username": "a", "password": "b"}}}"#).unwrap();
    let (_running, session) = open(&sessions, &client, Session::new("").auth(Arc::new(config))).await;
    let found = session.credentials("r.example").await.unwrap();
    assert_eq!((found.username.as_str(), found.secret.as_str()), ("a", "b"));
    assert_eq!(session.token_authority("r.example", b"salt").await.unwrap(), None);
}

type DataAndMetadata = (Vec<u8>, BTreeMap<String, String>);

/// What a file output received, and with which metadata.
#[derive(Default, Clone)]
struct Written(Arc<Mutex<DataAndMetadata>>);

impl Write for Written {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().0.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn uploads_reach_their_target() {
    let (_daemon, sessions, client) = house().await;
    let written = Written::default();
    let (sink, taken) = (written.clone(), Output::File(Arc::new(|_| Ok(None))));
    let target = Output::File(Arc::new(move |metadata| {
        sink.0.lock().unwrap().1 = metadata.clone();
        Ok(Some(Box::new(sink.clone())))
    }));
    let broken = Output::File(Arc::new(|_| Err(std::io::Error::other("disk on fire"))));
    let (_running, session) = open(&sessions, &client, Session::new("").outputs([(0, target), (2, taken), (3, broken)].into())).await;

    let metadata = BTreeMap::from([("k.v".to_owned(), "w".to_owned())]);
    let mut upload = session.upload(0, &metadata).await.unwrap();
    upload.write(Bytes::from(vec![7; 10 << 20])).await.unwrap();
    upload.write(Bytes::from_static(b"end")).await.unwrap();
    upload.finish().await.unwrap();
    let (data, seen) = written.0.lock().unwrap().clone();
    assert!(data.len() == (10 << 20) + 3 && data.ends_with(b"\x07end"));
    assert_eq!(seen, metadata);

    let exists = session.upload(2, &metadata).await.unwrap();
    exists.finish().await.unwrap();
    let mut broken = session.upload(3, &metadata).await.unwrap();
    let outcome = async {
        for _ in 0..100 {
            broken.write(Bytes::from(vec![0; 1 << 20])).await?;
        }
        broken.finish().await
    };
    assert_eq!(outcome.await.unwrap_err().to_string(), "failed to open the output: disk on fire");
    let missing = session.upload(1, &metadata).await.unwrap();
    assert_eq!(missing.finish().await.unwrap_err().to_string(), "exporter 1 not found");
}

async fn send_tree(session: &dyn session::Session, multi_platform: bool) -> fault::Result<()> {
    let mut stream = session.upload_tree(0, &BTreeMap::new(), multi_platform).await.unwrap();
    let stat = |path: &str, mode| Packet::Stat(Stat { path: path.into(), mode, mod_time: 1, ..Stat::default() });
    for packet in [stat("dir", go_mode::DIR | 0o755), stat("dir/file", 0o644), Packet::StatEnd] {
        stream.send(packet).await?;
    }
    loop {
        match stream.receive().await? {
            Some(Packet::Request { id: 1 }) => {
                stream.send(Packet::Data { id: 1, data: Bytes::from_static(b"content") }).await?;
                stream.send(Packet::Data { id: 1, data: Bytes::new() }).await?;
            }
            Some(Packet::Fin) => {
                stream.send(Packet::Fin).await?;
                let (sink, mut source) = stream.split();
                drop(sink);
                assert_eq!(source.receive().await?, None);
                return Ok(());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn trees_reach_their_directory() {
    let (_daemon, sessions, client) = house().await;
    let root = tempfile::tempdir().unwrap();
    let output = |mode| Session::new("").outputs([(0, Output::Directory { path: root.path().to_owned(), mode })].into());
    std::fs::write(root.path().join("old"), "x").unwrap();
    let (_running, session) = open(&sessions, &client, output(Mode::Keep)).await;
    send_tree(session.as_ref(), false).await.unwrap();
    assert_eq!(std::fs::read_to_string(root.path().join("dir/file")).unwrap(), "content");
    assert!(root.path().join("old").exists());
    let (_running, session) = open(&sessions, &client, output(Mode::Delete)).await;
    assert!(send_tree(session.as_ref(), false).await.unwrap_err().to_string().contains("mode=delete"));
    send_tree(session.as_ref(), true).await.unwrap();
    assert!(!root.path().join("old").exists());
}

#[tokio::test]
async fn ssh_is_a_pipe_to_the_agent() {
    let (_daemon, sessions, client) = house().await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let agent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = [0; 4];
        stream.read_exact(&mut question).await.unwrap();
        stream.write_all(b"pong").await.unwrap();
        question
    });
    let (_running, session) = open(&sessions, &client, Session::new("").ssh([("default".to_owned(), Agent { socket })].into())).await;
    assert!(session.ssh_available("").await.unwrap());
    assert_eq!(session.ssh_available("x").await.unwrap_err().kind(), Kind::NotFound);
    let mut pipe = session.ssh("").await.unwrap();
    pipe.write_all(b"ping").await.unwrap();
    let mut answer = String::new();
    pipe.read_to_string(&mut answer).await.unwrap();
    assert_eq!((answer.as_str(), &agent.await.unwrap()), ("pong", b"ping"));
}

#[tokio::test]
async fn blobs_are_written_once_and_read_back() {
    let (_daemon, sessions, client) = house().await;
    let dir = tempfile::tempdir().unwrap();
    let stores = BTreeMap::from([("local:cache".to_owned(), BlobDir::new(dir.path()))]);
    let (_running, session) = open(&sessions, &client, Session::new("").content(stores)).await;
    let store = session.content("local:cache");
    let data = Bytes::from((0..2_500_000u32).map(|n| (n / 3) as u8).collect::<Vec<_>>());
    let digest = Digest::of(&data);
    assert_eq!(store.size(&digest).await.unwrap(), None);
    let mut write = store.write(&digest, data.len() as u64).await.unwrap().unwrap();
    write.write(data.clone()).await.unwrap();
    write.finish().await.unwrap();
    assert_eq!(store.size(&digest).await.unwrap(), Some(data.len() as u64));
    assert!(store.write(&digest, data.len() as u64).await.unwrap().is_none(), "there already");
    let mut read = store.read(&digest, 5).await.unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = read.read().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert!(got == data[5..]);

    let wrong = Digest::of("something else");
    let mut write = store.write(&wrong, 3).await.unwrap().unwrap();
    write.write(Bytes::from_static(b"abc")).await.unwrap();
    assert!(write.finish().await.unwrap_err().to_string().contains("unexpected commit digest"));
    assert_eq!(store.size(&wrong).await.unwrap(), None);
    assert!(!dir.path().join("ingest").read_dir().unwrap().any(|_| true), "nothing is left of failed writes");
    assert_eq!(session.content("local:other").size(&digest).await.unwrap(), None);
    assert!(!Path::new("local:cache").exists());
}

#[tokio::test]
async fn sessions_come_and_go() {
    let (_daemon, sessions, client) = house().await;
    let (running, session) = open(&sessions, &client, Session::new("")).await;
    drop(running);
    tokio::time::timeout(Duration::from_secs(60), session.closed()).await.unwrap();
    assert!(session.secret("a").await.is_err(), "a closed session does not hang");
    while sessions.count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_lost_connection_ends_its_sessions() {
    let (_daemon, sessions, client) = house().await;
    let (_running, session) = open(&sessions, &client, Session::new("")).await;
    client.connection().life().cancel("unplugged");
    tokio::time::timeout(Duration::from_secs(60), session.closed()).await.unwrap();
}

#[tokio::test]
async fn a_session_that_came_back_replaces_the_old_one() {
    let (_daemon, sessions, client) = house().await;
    let silent = |id: &str| {
        let mut request = tonic::Request::new(tokio_stream::pending::<proto::moby::buildkit::v1::BytesMessage>());
        request.metadata_mut().insert("x-docker-expose-session-uuid", id.parse().unwrap());
        request
    };
    let mut first = client.control().session(silent("same")).await.unwrap().into_inner();
    let old = sessions.get("same").await.unwrap();
    let _second = client.control().session(silent("same")).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), old.closed()).await.unwrap();
    assert_eq!(sessions.count(), 1);
    let old_tunnel = async { while let Ok(Some(_)) = first.message().await {} };
    tokio::time::timeout(Duration::from_secs(60), old_tunnel).await.expect("the old tunnel ends");
    let refused = client.control().session(tonic::Request::new(tokio_stream::empty())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "a session needs an id");
}

#[tokio::test]
async fn a_session_that_does_not_answer_is_given_up() {
    let (_daemon, sessions, client) = house().await;
    let mut request = tonic::Request::new(tokio_stream::pending::<proto::moby::buildkit::v1::BytesMessage>());
    request.metadata_mut().insert("x-docker-expose-session-uuid", "dead".parse().unwrap());
    request.metadata_mut().insert("x-buildkit-session-health-custom-timeout", "1".parse().unwrap());
    let started = std::time::Instant::now();
    let _tunnel = client.control().session(request).await.unwrap();
    let session = sessions.get("dead").await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), session.closed()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "the limit has a floor");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_comes() {
    let missing = Sessions::new().get("p:abc").await.err().unwrap();
    assert_eq!((missing.kind(), missing.to_string().as_str()), (Kind::NotFound, "no active session for abc: context deadline exceeded"));
}
