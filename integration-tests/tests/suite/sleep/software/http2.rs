//! HTTP/2 in clear text on a connection that is kept.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use h2::client::{ResponseFuture, SendRequest};
use podmotion_integration_tests::{Client, PATIENCE};
use tokio::runtime::Runtime;

/// A connection for many requests at once.
pub(super) struct Streams {
    runtime: Runtime,
    sender: SendRequest<bytes::Bytes>,
    address: SocketAddr,
    local: SocketAddr,
}

impl Streams {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("make a runtime")?;
        let stream = Client::default().connect(address)?;
        stream.set_nonblocking(true).context("share a connection")?;
        let local = stream.local_addr().context("read our address")?;
        let handshake = async {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let (sender, connection) = h2::client::handshake(stream).await?;
            // Its error, if any, is the requests' error too.
            tokio::spawn(connection);
            Ok::<_, anyhow::Error>(sender)
        };
        let sender = runtime
            .block_on(handshake)
            .context("begin to speak HTTP/2")?;
        Ok(Self {
            runtime,
            sender,
            address,
            local,
        })
    }

    /// Our address.
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// The bodies of `count` good answers, all asked for before the first came.
    pub(super) fn get(&mut self, path: &str, count: usize) -> Result<Vec<String>> {
        let uri = format!("http://{}{path}", self.address);
        let sender = self.sender.clone();
        let all = async {
            let mut sender = sender.ready().await?;
            let mut answers = Vec::new();
            for _ in 0..count {
                let request = http::Request::get(&uri).body(())?;
                answers.push(sender.send_request(request, true)?.0);
                sender = sender.ready().await?;
            }
            let mut bodies = Vec::new();
            for answer in answers {
                bodies.push(body(answer).await?);
            }
            Ok::<_, anyhow::Error>(bodies)
        };
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, all).await })
            .with_context(|| format!("no answers over HTTP/2 in {PATIENCE:?}"))?
            .context("requests on a kept HTTP/2 connection")
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // Nothing of it is worth waiting for.
        let spare = tokio::runtime::Builder::new_current_thread().build();
        if let Ok(spare) = spare {
            std::mem::replace(&mut self.runtime, spare).shutdown_timeout(Duration::ZERO);
        }
    }
}

async fn body(answer: ResponseFuture) -> Result<String> {
    let answer = answer.await?;
    ensure!(answer.status() == 200, "{answer:?}");
    let mut stream = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(part) = stream.data().await {
        let part = part?;
        stream.flow_control().release_capacity(part.len())?;
        bytes.extend_from_slice(&part);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
