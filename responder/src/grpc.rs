//! Health checks over gRPC (`grpc.health.v1`), in clear text as the kubelet makes them.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response, header};
use podmotion_model::probe::{MAX_HEAD, Request};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::shim::{Answer, Shim};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const STATUS: &str = "grpc-status";
/// The status of a call that nobody answers.
const UNAVAILABLE: &str = "14";
/// Bytes in front of each message: compressed or not, length.
const PREFIX: usize = 5;
/// A `HealthCheckResponse` with the status `SERVING`, as a message.
const SERVING: [u8; PREFIX + 2] = [0, 0, 0, 0, 2, 8, 1];

/// What the other side says in a call.
struct Said {
    message: Bytes,
    trailers: HeaderMap,
}

/// Serves one call, as many as a kubelet makes over a connection.
pub async fn serve(client: TcpStream, shim: Shim) -> Result<()> {
    let (call, mut rest) = timeout(PATIENCE, async {
        let mut calls = h2::server::handshake(client)
            .await
            .context("speak HTTP/2")?;
        let call = calls
            .accept()
            .await
            .context("no call")?
            .context("read a call")?;
        // The connection moves only while it is asked for calls.
        let rest = tokio::spawn(async move {
            while let Some(Ok((_, mut more))) = calls.accept().await {
                more.send_reset(h2::Reason::REFUSED_STREAM);
            }
        });
        anyhow::Ok((call, rest))
    })
    .await
    .context("wait for a call")??;
    let (request, mut respond) = call;
    let (head, body) = request.into_parts();
    let said = timeout(PATIENCE, read(body))
        .await
        .context("wait for a call")??;
    let agent = head
        .headers
        .get(header::USER_AGENT)
        .map(HeaderValue::as_bytes);
    let probe =
        head.uri.path() == CHECK && agent.is_some_and(|agent| agent.starts_with(b"kube-probe/"));
    let asked = match said.message.get(PREFIX..) {
        Some(message) if probe => Request::Grpc {
            message: message.into(),
        },
        _ => Request::Other,
    };
    match shim.ask(asked)? {
        Answer::Known => answer(&mut respond, SERVING.as_slice().into(), trailers("0"))?,
        Answer::Nobody => answer(&mut respond, Bytes::new(), trailers(UNAVAILABLE))?,
        Answer::Application(application) => {
            let call = http::Request::from_parts(head, ());
            let forwarded = tokio::select! {
                forwarded = forward(application, call, said.message) => forwarded,
                // It has given up. An application that hangs would be waited for otherwise.
                _ = &mut rest => return shim.outcome(false, "no answer in time"),
            };
            let (passed, words) = match forwarded {
                Ok(said) => {
                    let passed = said.message.as_ref() == SERVING;
                    let words = words(&said, passed);
                    answer(&mut respond, said.message, said.trailers)?;
                    (passed, words)
                }
                Err(error) => {
                    answer(&mut respond, Bytes::new(), trailers(UNAVAILABLE))?;
                    (false, format!("{error:#}"))
                }
            };
            shim.outcome(passed, words)?;
        }
    }
    // Until the client has its answer and goes.
    drop(timeout(PATIENCE, rest).await);
    Ok(())
}

fn words(said: &Said, passed: bool) -> String {
    if passed {
        return "SERVING".to_owned();
    }
    let status = said.trailers.get(STATUS).map(HeaderValue::as_bytes);
    match status {
        Some(b"0") | None => "not SERVING".to_owned(),
        Some(status) => format!("{STATUS} {}", String::from_utf8_lossy(status)),
    }
}

fn trailers(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        header::HeaderName::from_static(STATUS),
        HeaderValue::from_static(status),
    )])
}

fn answer(to: &mut SendResponse<Bytes>, message: Bytes, trailers: HeaderMap) -> Result<()> {
    let head = Response::builder()
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(())
        .context("make an answer")?;
    let mut stream = to.send_response(head, false).context("answer")?;
    stream.send_data(message, false).context("answer")?;
    stream.send_trailers(trailers).context("answer")
}

/// Makes the call to the application.
async fn forward(application: TcpStream, call: http::Request<()>, message: Bytes) -> Result<Said> {
    let (mut client, connection) = h2::client::handshake(application)
        .await
        .context("speak HTTP/2 with the application")?;
    tokio::spawn(connection);
    let (response, mut stream) = client.send_request(call, false).context("call")?;
    stream.send_data(message, true).context("call")?;
    let response = response.await.context("wait for the answer")?;
    let (head, body) = response.into_parts();
    let mut said = read(body).await?;
    // An answer without a message has its status there.
    if let Some(status) = head.headers.get(STATUS) {
        said.trailers.insert(STATUS, status.clone());
    }
    Ok(said)
}

/// Reads what comes with a head. Health checks and their answers are some bytes long.
async fn read(mut body: RecvStream) -> Result<Said> {
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.context("read a message")?;
        drop(body.flow_control().release_capacity(data.len()));
        message.extend_from_slice(&data);
        anyhow::ensure!(message.len() <= MAX_HEAD, "a message is too long");
    }
    let trailers = body.trailers().await.context("read the trailers")?;
    Ok(Said {
        message: message.into(),
        trailers: trailers.unwrap_or_default(),
    })
}
