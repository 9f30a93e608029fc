//! The node server, asked by those who have no business there.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{Cluster, PATIENCE};

use super::stage::Stage;
use super::tls::{Peer, SERVER, read};
use crate::kube::counter::status;
use crate::kube::manifest::{pod, python, script};

/// Asks as a pod can that knows all but a token of its own.
const FROM_A_POD: &str = "
import ssl, sys, urllib.request, urllib.error
context = ssl._create_unverified_context()
for path in ['/v1/containers', '/v1/containers/default/x/sleep', '/v1/check', '/v1/peer', '/']:
    headers = {'X-Podmotion-Token': sys.argv[1]} if sys.argv[1] else {}
    method = 'POST' if path.endswith('sleep') else 'GET'
    request = urllib.request.Request('https://10.77.0.1:8090' + path, headers=headers, method=method)
    try:
        print(path, urllib.request.urlopen(request, context=context).status)
    except urllib.error.HTTPError as error:
        print(path, error.code, error.read().decode().strip())
";

pub(super) fn only_tokens_for_managers_open_the_node_server(cluster: &Cluster) -> Result<()> {
    let stage = Stage::without_pod(cluster)?;
    let container = script("app", "while :; do sleep 3600; done");
    let target = cluster.run(&pod(vec![container]))?;
    let waits = python("app", "import time; time.sleep(100000)", &[]);
    let inside = cluster.run(&pod(vec![waits]))?;

    // From a pod, without a token and with one that is not for managers.
    let other = stage.token("podmotion-operator", Some("other"))?;
    let of_api = stage.token("podmotion-operator", None)?;
    for (token, words) in [
        ("", "no token: expected one of a service account"),
        ("a.b.c", "the token is not accepted"),
        (&other, "the token is not accepted"),
        (&of_api, "the token is not accepted"),
    ] {
        let said = cluster.kubectl().run(&[
            "exec",
            inside.name(),
            "--",
            "python3",
            "-c",
            FROM_A_POD,
            token,
        ])?;
        let lines: Vec<&str> = said.lines().collect();
        for path in [
            "/v1/containers",
            "/v1/containers/default/x/sleep",
            "/v1/check",
        ] {
            let refused = format!("{path} 401 {words}");
            ensure!(
                lines.iter().any(|line| line.starts_with(&refused)),
                "no {refused:?} in {said}"
            );
        }
        ensure!(
            said.contains("/v1/peer 403 only for managers") && said.contains("/ 404 "),
            "{said}"
        );
    }

    // With a good one: what its account may do, and no more.
    let peer = Peer::anonymous(cluster)?;
    let viewer = stage.token("podmotion-viewer", Some("podmotion.komodor.com"))?;
    let ask = |method: &str, path: &str, token: &str| {
        peer.ask(&format!(
            "{method} {path} HTTP/1.1\r\nX-Podmotion-Token: {token}"
        ))
    };
    let place = format!("/v1/containers/default/{}", target.name());
    let said = ask("GET", &place, &viewer)?;
    ensure!(
        said.starts_with("HTTP/1.1 200 ") && said.contains(r#""state":"running""#),
        "{said}"
    );
    let said = ask("POST", &format!("{place}/sleep"), &viewer)?;
    let words = format!(
        "system:serviceaccount:komodor-podmotion-system:podmotion-viewer may not sleep \
         containers.podmotion.komodor.com {:?} in namespace \"default\"",
        target.name()
    );
    ensure!(
        said.starts_with("HTTP/1.1 403 ") && said.contains(&words),
        "{said}"
    );
    let seen = status(&target)?;
    ensure!(seen.state == "running", "{seen:?}");

    let operator = stage.token("podmotion-operator", Some("podmotion.komodor.com"))?;
    for (method, path, status) in [
        ("GET", "/v1/containers/default/..%2f..%2fx", 400),
        ("GET", "/v1/containers/default/no-such-pod", 404),
        ("POST", "/v1/containers/default/no-such-pod/sleep", 404),
        ("POST", "/v1/containers/default/no-such-pod/die", 404),
        ("DELETE", "/v1/containers/default/no-such-pod", 405),
        ("GET", "/v1/containers?namespace=*", 400),
    ] {
        let said = ask(method, path, &operator)?;
        let expected = format!("HTTP/1.1 {status} ");
        ensure!(said.starts_with(&expected), "{method} {path}: {said}");
    }
    let said = ask("POST", &format!("{place}/sleep"), &operator)?;
    ensure!(
        said.starts_with("HTTP/1.1 200 ") && said.contains(r#""changed":true"#),
        "{said}"
    );
    let seen = status(&target)?;
    ensure!(seen.state == "asleep", "{seen:?}");
    Ok(())
}

pub(super) fn whatever_a_client_sends_is_bounded(cluster: &Cluster) -> Result<()> {
    let stage = Stage::without_pod(cluster)?;
    let before = stage.manager_memory()?;
    // One that says nothing, from the beginning on.
    let mut mute = TcpStream::connect(SERVER).context("connect")?;
    mute.set_read_timeout(Some(PATIENCE))?;

    let peer = Peer::anonymous(cluster)?;
    let huge = "x".repeat(1 << 20);
    let said = peer.ask(&format!(
        "GET /v1/check HTTP/1.1\r\nX-Podmotion-Token: {huge}"
    ));
    // It may have stopped to listen before all was said.
    ensure!(
        said.as_ref()
            .map_or(true, |said| said.starts_with("HTTP/1.1 431 ")),
        "{said:?}"
    );
    let lines = "X-A: b\r\n".repeat(1000);
    let said = peer.ask(&format!("GET /v1/check HTTP/1.1\r\n{lines}X-C: d"));
    ensure!(
        said.as_ref()
            .map_or(true, |said| said.starts_with("HTTP/1.1 431 ")),
        "{said:?}"
    );
    for length in [
        "Content-Length: 1000000000000",
        "Transfer-Encoding: chunked",
    ] {
        let said = peer.ask(&format!(
            "POST /v1/containers/a/b/sleep HTTP/1.1\r\n{length}"
        ))?;
        ensure!(
            said.starts_with("HTTP/1.1 413 ") && said.contains("requests have no content here"),
            "{said}"
        );
    }
    let long = "t".repeat(10_000);
    let said = peer.ask(&format!(
        "GET /v1/check HTTP/1.1\r\nX-Podmotion-Token: {long}"
    ))?;
    ensure!(
        said.starts_with("HTTP/1.1 401 ") && said.contains("too long"),
        "{said}"
    );
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0x16, 3, 1, 0xff, 0xff, 1],
        &[0; 70_000],
    ] {
        let mut plain = TcpStream::connect(SERVER).context("connect")?;
        plain.set_read_timeout(Some(PATIENCE))?;
        // It may have closed before all is written.
        let _ = plain.write_all(garbage);
        drop(plain);
    }

    // More connections than one address may have: the last are closed, the first are served.
    let mut first = peer.connect()?;
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
        .context("write")?;
    let mut head = [0; 12];
    first.read_exact(&mut head).context("read")?;
    ensure!(&head == b"HTTP/1.1 404", "{head:?}");
    let crowd: Vec<TcpStream> = (0..100)
        .map(|_| TcpStream::connect(SERVER).context("connect"))
        .collect::<Result<_>>()?;
    let last = crowd.last().context("no crowd")?;
    last.set_read_timeout(Some(PATIENCE))?;
    closed((&*last).read(&mut head))?;
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        .context("write")?;
    ensure!(read(&mut first)?.contains("HTTP/1.1 404"));
    // It has closed each of them too: their places are free.
    for one in &crowd {
        one.set_read_timeout(Some(PATIENCE))?;
        // Those beyond the bound are closed already.
        let _ = one.shutdown(Shutdown::Write);
        closed((&*one).read(&mut head))?;
    }

    // Whoever says nothing is not waited for for ever.
    closed(mute.read(&mut head))?;
    let after = stage.manager_memory()?;
    ensure!(
        after < before + 16 * 1024,
        "{before} KiB before, {after} after"
    );
    let said = peer.ask("GET /v1/check HTTP/1.1")?;
    ensure!(said.starts_with("HTTP/1.1 401 "), "{said}");
    Ok(())
}

/// That the server has closed a connection, and not that it still has not after a while.
fn closed(read: io::Result<usize>) -> Result<()> {
    let waits = |kind| matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    match read {
        Ok(0) => Ok(()),
        Err(error) if !waits(error.kind()) => Ok(()),
        read => bail!("the connection is open: {read:?}"),
    }
}
