//! A container goes on where it was.

use anyhow::{Result, ensure};
use podmotion_integration_tests::{App, Client, Node, Runtime};

use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[(
    "sleep::core::sleeps_and_wakes_for_a_request",
    sleeps_and_wakes_for_a_request,
)];

fn sleeps_and_wakes_for_a_request(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(App::counter())?;
    container.stdout()?.wait_for("listening")?;
    container.sleep()?;
    ensure!(container.status()?.state == "asleep");
    let answer = Client::default().get(container.address(8080)?, "/")?;
    ensure!(
        answer.status == 200 && answer.body.contains("\"count\": 1"),
        "{answer:?}"
    );
    let status = container.status()?;
    ensure!(status.last_wake.cause == "traffic", "{status:?}");
    Ok(())
}
