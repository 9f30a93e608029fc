//! A probe that the application answers itself.

use std::io;

use podmotion_model::probe::{Request, response_status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

use super::{Probe, reset};

/// Bytes under way in one direction at most: of a probe there are few.
const BUFFER: usize = 4096;

/// Leads `client` to the application, to which `begun` has been sent already. The beginning of the
/// answer says whether a probe has passed.
pub async fn serve(
    client: &mut TcpStream,
    request: Request,
    begun: Vec<u8>,
    probe: &Probe,
) -> io::Result<()> {
    let mut application = match probe.connect(client).await {
        Ok(application) => application,
        Err(error) => {
            probe.tell(request, false, error.to_string());
            return reset(client);
        }
    };
    application.write_all(&begun).await?;
    let mut answer = Vec::with_capacity(BUFFER);
    let mut more = [0; BUFFER];
    let status = loop {
        tokio::select! {
            read = application.read_buf(&mut answer) => {
                let ended = read.map_or(true, |length| length == 0);
                let status = response_status(&answer);
                if status.is_some() || ended || answer.len() >= BUFFER || request == Request::Other {
                    break status;
                }
            }
            read = client.read(&mut more) => match read {
                Ok(0) | Err(_) => {
                    // It has given up.
                    probe.tell(request, false, "no answer in time");
                    return Ok(());
                }
                Ok(length) => application.write_all(&more[..length]).await?,
            },
        }
    };
    match (status, &request) {
        (Some(status), _) => {
            let passed = (200..400).contains(&status);
            probe.tell(request, passed, status.to_string());
        }
        // Such as gRPC where it is not looked into: nobody can tell more than that it was answered.
        (None, Request::Other) => probe.tell(request, !answer.is_empty(), "passed on"),
        (None, _) => probe.tell(request, false, "no HTTP response"),
    }
    client.write_all(&answer).await?;
    let ended = copy_bidirectional_with_sizes(client, &mut application, BUFFER, BUFFER).await;
    ended.map(drop)
}
