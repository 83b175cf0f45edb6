//! Steps that reach the network through the proxy and in no other way.
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use fault::Result;
use proxy::{Captured, Judge, Outlet, Serving};
use sandbox::Network;
use sandbox::network::{Enclosure, WayOut};
use tokio::net::TcpStream;

use super::Exec;

/// That a step is to be behind the proxy.
pub struct Proxied<'a> {
    /// Says what it may fetch.
    pub judge: Arc<dyn Judge>,
    /// Hears what it fetched, whether it succeeded or not.
    pub captured: &'a (dyn Fn(Captured) + Send + Sync),
}

/// The network of such a step.
pub(super) struct Behind {
    enclosure: Arc<Enclosure>,
    serving: Serving,
    address: SocketAddr,
}

impl Behind {
    /// `network` is where the proxy itself gets.
    pub async fn open(exec: &Exec, judge: Arc<dyn Judge>, network: &Network) -> Result<Self> {
        let outlet = Arc::new(Way(exec.networks.way_out(network).await?));
        let (enclosure, listener) = exec.networks.enclosure().await?;
        let address = listener.local_addr()?;
        let serving = exec.proxy.serve(listener, outlet, judge)?;
        Ok(Self { enclosure: Arc::new(enclosure), serving, address })
    }

    pub fn network(&self) -> Network {
        Network::Enclosed(self.enclosure.clone())
    }

    /// Puts the proxy in the place of any that the variables name.
    pub fn set_variables(&self, env: &mut Vec<String>) {
        let proxy = format!("http://{}", self.address);
        let none = "127.0.0.1,localhost,::1";
        let own = [
            ("HTTP_PROXY", proxy.as_str()),
            ("HTTPS_PROXY", &proxy),
            ("http_proxy", &proxy),
            ("https_proxy", &proxy),
            ("NO_PROXY", none),
            ("no_proxy", none),
        ];
        env.retain(|variable| !own.iter().any(|(name, _)| variable.split('=').next() == Some(name)));
        env.extend(own.iter().map(|(name, value)| format!("{name}={value}")));
    }

    pub async fn finish(self) -> Captured {
        self.serving.finish().await
    }
}

struct Way(WayOut);

#[async_trait]
impl Outlet for Way {
    async fn connect(&self, host: &str, port: u16) -> std::io::Result<TcpStream> {
        self.0.connect(host, port).await
    }
}
