//! Names to descriptors, against honest and dishonest registries.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use oci::{Descriptor, Digest, media};
use registry::{Access, Client, Host, RegistryError};
use support::{Act, Fake, client, config, manifest, open, status};

fn some_manifest(fake: &Fake, repository: &str) -> Descriptor {
    let config = fake.add_blob(repository, &b"{}"[..]);
    fake.add_manifest(repository, "latest", media::OCI_MANIFEST, manifest(&config, &[]))
}

#[tokio::test]
async fn resolves_by_head_and_fetches_by_digest() {
    let fake = Fake::start().await;
    let wanted = some_manifest(&fake, "a/b");
    let reference = fake.reference("a/b:latest");
    let repository = open(&client(), &reference);
    let found = repository.resolve(&reference).await.unwrap();
    assert_eq!(found, wanted);
    assert_eq!(fake.count("GET", ""), 0);
    assert_eq!(Digest::of(repository.manifest(&found).await.unwrap()), wanted.digest);
    let agent = fake.seen()[0].headers["user-agent"].clone();
    assert_eq!(agent, "buildkit/v0.0.0+unknown");
}

#[tokio::test]
async fn asks_for_the_document_where_headers_do_not_tell() {
    let fake = Fake::start().await;
    let wanted = some_manifest(&fake, "a");
    fake.state.lock().unwrap().plain_heads = true;
    let reference = fake.reference("a:latest");
    assert_eq!(open(&client(), &reference).resolve(&reference).await.unwrap(), wanted);

    let fake = Fake::start().await;
    let wanted = some_manifest(&fake, "a");
    fake.hook(|seen| if seen.method == "HEAD" { Act::Reply(status(405, "")) } else { Act::Pass });
    let reference = fake.reference("a:latest");
    assert_eq!(open(&client(), &reference).resolve(&reference).await.unwrap(), wanted);
}

/// A list of what refers to something: a signature, and a statement.
fn referrers(fake: &Fake) -> (Vec<Descriptor>, Bytes) {
    let referrer = |kind: &str| Descriptor { artifact_type: kind.into(), ..some_manifest(fake, "a") };
    let all = vec![referrer("application/x-signature"), referrer("application/x-statement")];
    let list = serde_json::json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": all});
    (all, list.to_string().into())
}

#[tokio::test]
async fn referrers_are_listed_by_the_registry_or_by_a_tag() {
    let fake = Fake::start().await;
    let (all, list) = referrers(&fake);
    let subject = Digest::of("subject");
    let repository = open(&client(), &fake.reference("a"));
    assert!(repository.referrers(&subject, None).await.unwrap().is_empty(), "neither is there");

    fake.add_manifest("a", &subject.to_string().replace(':', "-"), media::OCI_INDEX, list.clone());
    assert_eq!(repository.referrers(&subject, None).await.unwrap(), all);
    assert_eq!(repository.referrers(&subject, Some("application/x-statement")).await.unwrap(), all[1..]);

    let fake = Fake::start().await;
    fake.hook(move |seen| {
        assert!(seen.path.starts_with("/v2/a/referrers/sha256:"), "{}", seen.path);
        let reply = http::Response::builder().header("Content-Type", media::OCI_INDEX).body(support::full(list.clone()));
        Act::Reply(reply.unwrap())
    });
    let repository = open(&client(), &fake.reference("a"));
    assert_eq!(repository.referrers(&subject, Some("application/x-signature")).await.unwrap(), all[..1]);
    assert_eq!(support::parameter(&fake.seen()[0].query, "artifactType").as_deref(), Some("application/x-signature"));
}

#[tokio::test]
async fn says_what_is_missing() {
    let fake = Fake::start().await;
    let reference = fake.reference("a:nope");
    let error = open(&client(), &reference).resolve(&reference).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{}/a:nope: not found", fake.host()));
}

#[tokio::test]
async fn refuses_garbage() {
    for (content_type, body) in
        [("text/html", &b"<html>login here</html>"[..]), ("application/json", b"{\"x\":1}"), (media::OCI_MANIFEST, b"\0\xff"), ("", b"")]
    {
        let fake = Fake::start().await;
        fake.hook(move |_| {
            let reply = http::Response::builder().header("Content-Type", content_type).body(support::full(Bytes::from_static(body)));
            Act::Reply(reply.unwrap())
        });
        let reference = fake.reference("a:latest");
        let error = open(&client(), &reference).resolve(&reference).await.unwrap_err();
        assert!(matches!(error, RegistryError::Manifest { .. }), "{content_type}: {error}");
    }
}

#[tokio::test]
async fn refuses_a_digest_header_that_is_none_and_a_huge_manifest() {
    let fake = Fake::start().await;
    fake.hook(|_| {
        let reply = http::Response::builder()
            .header("Content-Type", media::OCI_MANIFEST)
            .header("Content-Length", "5")
            .header("Docker-Content-Digest", "sha256:../x");
        Act::Reply(reply.body(support::full(Bytes::new())).unwrap())
    });
    let reference = fake.reference("a:latest");
    let error = open(&client(), &reference).resolve(&reference).await.unwrap_err();
    assert!(error.to_string().contains("not a valid digest"), "{error}");

    let fake = Fake::start().await;
    fake.add_manifest("a", "latest", "application/json", vec![b' '; (registry::MAX_MANIFEST + 1) as usize]);
    let reference = fake.reference("a:latest");
    let error = open(&client(), &reference).resolve(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn checks_what_was_asked_for_by_digest() {
    let fake = Fake::start().await;
    let wanted = some_manifest(&fake, "a");
    let repository = open(&client(), &fake.reference("a"));
    let liar = fake.clone();
    fake.state
        .lock()
        .unwrap()
        .manifests
        .insert(("a".into(), wanted.digest.to_string()), (media::OCI_MANIFEST.into(), Bytes::from_static(b"{}")));
    let error = repository.manifest(&wanted).await.unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
    assert_eq!(liar.count("GET", "manifests"), 1, "a lie is not asked for again");
}

#[tokio::test]
async fn retries_what_passes() {
    let fake = Fake::start().await;
    let wanted = some_manifest(&fake, "a");
    let mut left = vec![Act::Hang, Act::Reply(status(429, "")), Act::Reply(status(503, ""))];
    fake.hook(move |_| left.pop().unwrap_or(Act::Pass));
    let reference = fake.reference("a:latest");
    assert_eq!(open(&client(), &reference).resolve(&reference).await.unwrap(), wanted);
    assert_eq!(fake.count("HEAD", "manifests"), 4);
}

#[tokio::test]
async fn gives_up_on_what_does_not_pass() {
    let fake = Fake::start().await;
    fake.hook(|_| Act::Reply(status(500, r#"{"errors":[{"code":"UNKNOWN","message":"disk on fire"}]}"#)));
    let reference = fake.reference("a:latest");
    let descriptor = Descriptor::of(media::OCI_MANIFEST, b"");
    let error = open(&client(), &reference).manifest(&descriptor).await.unwrap_err();
    assert_eq!(fake.seen().len(), 4);
    let url = format!("http://{}/v2/a/manifests/{}", fake.host(), descriptor.digest);
    assert_eq!(error.to_string(), format!("unexpected status from GET request to {url}: 500 Internal Server Error: unknown: disk on fire"));
}

#[tokio::test]
async fn asks_mirrors_first_and_the_origin_where_they_fail() {
    let (bad, empty, origin) = (Fake::start().await, Fake::start().await, Fake::start().await);
    bad.hook(|_| Act::Reply(status(500, "")));
    let wanted = some_manifest(&origin, "a");
    let mut config = config();
    let mirrors = vec![format!("{}/cache", bad.host()), format!("http://{}", empty.host())];
    config.hosts.insert(origin.host(), Host { mirrors, ..Host::default() });
    let client = Client::new(config);
    let reference = origin.reference("a:latest");
    assert_eq!(client.repository(&reference, Access::anonymous()).resolve(&reference).await.unwrap(), wanted);
    let asked = bad.seen();
    assert_eq!((asked.len(), asked[0].path.as_str()), (1, "/v2/cache/a/manifests/latest"));
    assert_eq!(support::parameter(&asked[0].query, "ns"), Some(origin.host()));
    assert_eq!(empty.seen().len(), 1);
    assert_eq!(origin.seen()[0].query, "");

    some_manifest(&empty, "a");
    client.repository(&reference, Access::anonymous()).resolve(&reference).await.unwrap();
    assert_eq!(origin.seen().len(), 1, "the second mirror has it now");
}

#[tokio::test]
async fn says_which_host_refused_the_connection() {
    // Bound, so that nobody else listens there, and not listening.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let reference = format!("{address}/a:latest").parse().unwrap();
    let error = open(&client(), &reference).resolve(&reference).await.unwrap_err();
    let text = fault::chain(&error);
    assert!(
        text.starts_with(&format!(
            "failed to do request: HEAD \"http://{address}/v2/a/manifests/latest\": dial {address}: Connection refused"
        )),
        "{text}"
    );
    drop(socket);
}
