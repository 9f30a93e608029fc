//! HTTP/1 over TLS: the certificate is thrown away, as the kubelet looks at none.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use podmotion_model::probe::{Head, response_status};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::PATIENCE;
use crate::shim::{Answer, Shim, reset_at_end};

/// The only protocol that is spoken within.
const ALPN: &[u8] = b"http/1.1";
/// What a request that is known gets.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Serves one connection.
pub async fn serve(client: TcpStream, shim: Shim) -> Result<()> {
    let local = client.local_addr().context("the client's connection")?;
    let acceptor = TlsAcceptor::from(Arc::new(server()?));
    let (mut client, begun) = timeout(PATIENCE, async {
        let mut client = acceptor.accept(client).await?;
        let begun = read_request(&mut client).await?;
        std::io::Result::Ok((client, begun))
    })
    .await
    .context("wait for a request")?
    .context("read a request")?;
    match shim.ask(Head::read(&begun).request(true))? {
        Answer::Known => {
            client.write_all(OK).await.context("answer")?;
            client.shutdown().await.context("answer")
        }
        Answer::Nobody => reset_at_end(client.get_ref().0),
        Answer::Application(application) => {
            let connector = TlsConnector::from(Arc::new(anyone()?));
            let name = server_name(local);
            // An application that hangs says nothing, and its client is not listened to meanwhile.
            let connected = timeout(PATIENCE, connector.connect(name, application)).await;
            match connected.map_err(std::io::Error::from).flatten() {
                Ok(application) => proxy(&mut client, application, &begun, &shim).await,
                Err(error) => {
                    shim.outcome(false, error.to_string())?;
                    reset_at_end(client.get_ref().0)
                }
            }
        }
    }
}

/// What comes until the head of a request is there, or it turns out to be none.
async fn read_request(client: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut begun = Vec::new();
    while Head::read(&begun) == Head::Partial {
        if client.read_buf(&mut begun).await? == 0 {
            break;
        }
    }
    Ok(begun)
}

/// Has the application answer. What it says first tells whether the probe has passed.
async fn proxy(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut application: impl AsyncRead + AsyncWrite + Unpin,
    begun: &[u8],
    shim: &Shim,
) -> Result<()> {
    application
        .write_all(begun)
        .await
        .context("pass the request on")?;
    application.flush().await.context("pass the request on")?;
    let mut answer = Vec::new();
    let mut more = [0; 4096];
    let status = loop {
        tokio::select! {
            read = application.read_buf(&mut answer) => {
                let ended = read.map_or(true, |length| length == 0);
                let status = response_status(&answer);
                if status.is_some() || ended || answer.len() > more.len() {
                    break status;
                }
            }
            read = client.read(&mut more) => match read {
                // It has given up.
                Ok(0) | Err(_) => return shim.outcome(false, "no answer in time"),
                Ok(length) => application.write_all(&more[..length]).await.context("pass a body on")?,
            },
        }
    };
    match status {
        Some(status) => shim.outcome((200..400).contains(&status), status.to_string())?,
        None => shim.outcome(false, "no HTTP response")?,
    }
    client
        .write_all(&answer)
        .await
        .context("pass the answer on")?;
    // However it ends, both have what the other had to say.
    drop(copy_bidirectional(client, &mut application).await);
    Ok(())
}

/// As the kubelet names it: by its address, which a handshake does not show.
fn server_name(local: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(local.ip().to_canonical().into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server() -> Result<ServerConfig> {
    let own = rcgen::generate_simple_self_signed(["podmotion".to_owned()])
        .context("make a certificate")?;
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der())
        .map_err(anyhow::Error::msg)
        .context("make a key")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("speak TLS")?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .context("use the certificate")?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// As the kubelet: whoever answers is the right one.
fn anyone() -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("speak TLS")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider())))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
