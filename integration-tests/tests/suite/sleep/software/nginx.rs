//! nginx, a master and two workers.

use anyhow::{Result, ensure};
use podmotion_integration_tests::{Client, Container, Exec, Node, PATIENCE, Runtime, wait_gone};
use serde_json::Value;

use super::http1::Kept;
use super::{PORT, VISITS, cycles, server};

pub(super) fn nginx(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(server(runtime, ["nginx", "-c", "/apps/nginx.conf"]))?;
    container.stderr()?.wait_for("start worker process")?;
    let (address, page) = (
        container.address(PORT)?,
        include_str!("../../../../apps/www/page.html"),
    );
    let mut kept = Kept::connect(address)?;
    // nginx's own number of this connection.
    let number = |body: &str| -> Result<Value> {
        Ok(serde_json::from_str::<Value>(body)?["connection"].clone())
    };
    let connection = number(&kept.get("/")?)?;
    cycles(
        &container,
        || {
            (0..VISITS).try_for_each(|_| {
                let response = Client::default().get(address, "/page.html")?;
                ensure!(
                    response.status == 200 && response.body == page,
                    "{response:?}"
                );
                let response = Client::default().get(address, "/")?;
                let body: Value = serde_json::from_str(&response.body)?;
                ensure!(body["client"] == response.local.to_string(), "{body}");
                Ok(())
            })
        },
        || {
            let body = kept.get("/")?;
            ensure!(number(&body)? == connection, "another connection: {body}");
            ensure!(kept.get("/page.html")? == page);
            Ok(())
        },
    )?;

    // The master still hears signals and its workers: new ones take over, the old ones end.
    let workers = |node: &Container| -> Result<String> {
        let (exit, pids) = node.exec_output(&Exec::sh("pgrep -P 1 nginx"))?;
        ensure!(exit.status == 0, "pgrep: {exit:?}");
        Ok(pids)
    };
    let before = workers(&container)?;
    container.sleep()?;
    container.kill(libc::SIGHUP)?;
    container.stderr()?.wait_for("reconfiguring")?;
    for worker in before.split_whitespace() {
        let line = format!("worker process {worker} exited with code 0");
        container.stderr()?.wait_for(&line)?;
    }
    ensure!(Client::default().get(address, "/page.html")?.body == page);

    let pid = container.pid()?;
    container.sleep()?;
    container.kill(libc::SIGTERM)?;
    ensure!(container.wait()?.status == 0, "nginx did not end by itself");
    wait_gone(pid.try_into()?, PATIENCE)
}
