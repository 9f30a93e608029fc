//! The Kubernetes that a person gets with `cargo xtask cluster`, which hands this to the workbench.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{Client, Node, Versions};

use crate::to_failure;

pub(crate) fn trials() -> Vec<Trial> {
    let name = "cluster::comes_does_what_it_says_and_goes";
    vec![Trial::test(name, || comes_and_goes().map_err(to_failure))]
}

/// All of it in a room, as if that were the person's machine: it has a network of its own.
fn comes_and_goes() -> Result<()> {
    let node = Node::start_without(Versions::default())?;
    let folder = node.folder().join("cluster");
    let said = good(&node, workbench("up", &folder).args(["--nodes", "2"]))?;
    let kubectl = folder.join("kubectl");
    ensure!(said.contains(&kubectl.display().to_string()), "{said}");
    let again = good(&node, &mut workbench("up", &folder))?;
    ensure!(again.contains("is up already"), "{again}");

    let kubectl = |arguments: &[&str]| good(&node, Command::new(&kubectl).args(arguments));
    let nodes = kubectl(&["get", "nodes", "--no-headers"])?;
    ensure!(nodes.matches(" Ready ").count() == 2, "{nodes}");
    let pod = folder.join("pod.yaml").display().to_string();
    kubectl(&["apply", "--filename", &pod])?;
    kubectl(&[
        "wait",
        "--for=condition=Ready",
        "--timeout=60s",
        "pod/sleeper",
    ])?;
    let place = "jsonpath={.status.podIP} {.spec.nodeName}";
    let place = kubectl(&["get", "pod", "sleeper", "--output", place])?;
    let (ip, on) = place.split_once(' ').context("no place")?;
    let address = SocketAddr::new(ip.parse::<IpAddr>()?, 8080);
    // The pod has no probe: it is ready before its program listens.
    node.within(move || crate::sleep::wait_listening(address))??;
    let answer = node.within(move || Client::default().get(address, "/"))??;
    ensure!(answer.status == 200, "{answer:?}");
    let cli = match on {
        "node-1" => "podmotion",
        _ => "podmotion-2",
    };
    let listed = good(&node, Command::new(folder.join(cli)).arg("ps"))?;
    ensure!(listed.contains("sleeper"), "{listed}");
    good(&node, &mut workbench("status", &folder))?;

    good(&node, &mut workbench("down", &folder))?;
    ensure!(!folder.exists(), "{} is left", folder.display());
    let link = output(
        &node,
        Command::new("ip").args(["link", "show", "podmotion0"]),
    )?;
    ensure!(!link.status.success(), "the link is left");
    let status = good(&node, &mut workbench("status", &folder))?;
    ensure!(status.contains("no cluster is up"), "{status}");
    good(&node, &mut workbench("down", &folder)).map(drop)
}

fn workbench(verb: &str, folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_workbench"));
    command.args(["cluster", verb, "--folder"]).arg(folder);
    command
}

/// What a command says that ends well.
fn good(node: &Node, command: &mut Command) -> Result<String> {
    let output = output(node, command)?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}{}",
        output.status,
        said(&output.stdout),
        said(&output.stderr)
    );
    Ok(said(&output.stdout))
}

fn output(node: &Node, command: &mut Command) -> Result<Output> {
    let mut whole = Command::new("timeout");
    whole
        .arg("120")
        .arg(command.get_program())
        .args(command.get_args());
    let shown = format!("{whole:?}");
    node.within(move || whole.output())?
        .with_context(|| format!("run {shown}"))
}
