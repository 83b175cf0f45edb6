//! The pages, over HTTP/1.1.
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use job::{Builds, Service as _};
use task::Cancel;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::exposition::{MEDIA_TYPE, Page};
use crate::{metrics, process};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 32;
/// How long a client may take for a request's head, and be silent between two requests.
const PATIENCE: Duration = Duration::from_secs(60);

const PAGES: &str = "\
/metrics         figures of the daemon, in the text format of Prometheus
/debug/requests  the builds that run
/debug/gc        give memory that the daemon keeps free back to the system
";

/// The pages of one daemon. Clones are the same.
#[derive(Clone)]
pub struct Dashboard(Arc<Inner>);

struct Inner {
    builds: Arc<Builds>,
    started: SystemTime,
    places: Semaphore,
}

type Answer = Response<Full<Bytes>>;

impl Dashboard {
    /// To be made when the daemon starts: the pages say when that was.
    pub fn new(builds: Arc<Builds>) -> Self {
        Self(Arc::new(Inner { builds, started: SystemTime::now(), places: Semaphore::new(CONNECTIONS) }))
    }

    /// Serves a connection until its client leaves, or until `stop`.
    pub async fn connection(self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, stop: Cancel) {
        let _place = self.0.places.acquire().await.expect("this semaphore is never closed");
        let pages = &self;
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| async move {
            Ok::<_, Infallible>(pages.answer(request.method(), request.uri().path()).await)
        });
        let served =
            http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(PATIENCE).serve_connection(TokioIo::new(io), answer);
        tokio::select! {
            outcome = served => if let Err(error) = outcome {
                tracing::debug!(%error, "a connection to the debug endpoint ended early");
            },
            () = stop.cancelled() => {}
        }
    }

    async fn answer(&self, method: &Method, path: &str) -> Answer {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n".into());
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match path {
            "/" | "/debug" | "/debug/" => text(StatusCode::OK, PAGES.into()),
            "/metrics" => self.metrics().await,
            "/debug/requests" => text(StatusCode::OK, self.requests()),
            "/debug/gc" => give_back_memory().await,
            _ => text(StatusCode::NOT_FOUND, format!("no such page: {path}\nThese are there:\n{PAGES}")),
        }
    }

    async fn metrics(&self) -> Answer {
        let figures = match self.0.builds.figures().await {
            Ok(figures) => figures,
            Err(fault) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{fault}\n")),
        };
        let mut page = Page::default();
        metrics::write(&mut page, &figures, &self.0.builds.version());
        process::write(&mut page, self.0.started);
        let mut answer = text(StatusCode::OK, page.finish());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        answer
    }

    fn requests(&self) -> String {
        let mut list = self.0.builds.under_way();
        if list.is_empty() {
            return "no build runs\n".into();
        }
        list.sort_by_key(|build| build.started);
        let line = |build: job::figures::UnderWay| {
            let seconds = build.started.elapsed().unwrap_or_default().as_secs();
            let frontend = if build.frontend.is_empty() { "-" } else { &build.frontend };
            format!("{}\t{seconds}s\t{frontend}\n", build.id)
        };
        std::iter::once("build\trunning for\tfrontend\n".to_owned()).chain(list.into_iter().map(line)).collect()
    }
}

async fn give_back_memory() -> Answer {
    let giving = task::blocking(|| {
        sandbox::give_back_memory();
        Ok(())
    });
    match giving.await {
        Ok(()) => text(StatusCode::OK, "done\n".into()),
        Err(fault) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{fault}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
