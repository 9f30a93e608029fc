//! Output and input of a container across its sleep: nothing lost, nothing twice.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Client, Member, Network, Node, Runtime, Stdin, Stdout, ensure_woken_by,
};

use super::{counter, wait_listening};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::stdio::unbroken_over_20_sleeps", unbroken::<20>),
    ("sleep::stdio::unbroken_pod_log", unbroken_pod_log),
    ("sleep::stdio::full_pipe", full_pipe),
    ("sleep::stdio::input_wakes", input_wakes),
    ("sleep::stdio::input_of_many_lines", input_of_many_lines),
    ("sleep::stdio::closed_input_wakes", closed_input_wakes),
];

/// Checks that the lines which start with `word` are numbered from 1 without a gap; returns how many.
fn numbered<'a>(lines: impl Iterator<Item = &'a str>, word: &str) -> Result<usize> {
    let mut number = 0;
    for line in lines.filter(|line| line.starts_with(word)) {
        number += 1;
        let right = line.split(' ').nth(1) == Some(&number.to_string());
        ensure!(right, "line {number} is {line:?}");
    }
    Ok(number)
}

pub(super) fn unbroken<const SLEEPS: usize>(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter().env("LOG_EVERY_MS", "2"))?;
    container.stdout()?.wait_for("listening")?;
    for _ in 0..SLEEPS {
        let so_far = container.stdout()?.bytes().len();
        container.stdout()?.wait_for_bytes(so_far + 100)?;
        container.sleep()?;
        container.wake()?;
    }
    let so_far = container.stdout()?.bytes().len();
    container.stdout()?.wait_for_bytes(so_far + 100)?;
    container.kill(libc::SIGKILL)?;
    container.wait()?;
    container.delete_task()?;
    let output = container.stdout()?.wait_end()?;
    let output = String::from_utf8(output).context("output that is no text")?;
    ensure!(output.ends_with('\n'), "the end is cut off: {output:?}");
    let ticks = numbered(output.lines(), "tick ")?;
    ensure!(ticks > 10 * SLEEPS, "only {ticks} lines");
    ensure!(container.stderr()?.wait_end()?.is_empty());
    Ok(())
}

fn unbroken_pod_log(node: &Node, _: Runtime) -> Result<()> {
    let pod = node.pod(Runtime::Podmotion)?;
    let app = App::new(["python3", "/apps/counter.py"]).env("LOG_EVERY_MS", "2");
    let member = pod.start(Member::new("one", app))?;
    wait_listening(pod.address(8080)?)?;
    let sleeper = member.sleeper();
    for _ in 0..5 {
        sleeper.sleep()?;
        sleeper.wake()?;
    }
    member.stop(0)?;
    let log = member.log()?;
    // Time, stream and a tag come before each line.
    let texts = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
    let ticks = numbered(texts, "tick ")?;
    ensure!(ticks > 10, "only {ticks} lines");
    Ok(())
}

fn full_pipe(node: &Node, _: Runtime) -> Result<()> {
    // Longer than what the kernel writes to a pipe at once: one of them is in the middle.
    for (lines, bytes) in [(4000, 100), (100, 10_000)] {
        let container = node.run(
            counter()
                .env("LOG_REQUESTS", "0")
                .stdout(Stdout::CapturedLater),
        )?;
        let address = container.address(8080)?;
        // What it says of its start stays unread.
        wait_listening(address)?;
        let path = format!("/log?lines={lines}&bytes={bytes}");
        ensure!(Client::default().get(address, &path)?.status == 200);
        for _ in 0..3 {
            container.sleep()?;
            container.wake()?;
        }
        container.sleep()?;
        ensure!(container.stdout()?.bytes().is_empty());
        container.stdout()?.read_on();
        container.wake()?;
        container.stdout()?.wait_for(&format!("line {lines} "))?;
        let size = "listening on 8080\n".len() + lines * bytes;
        container.stdout()?.wait_for_bytes(size)?;
        let output = container.stdout()?.text();
        ensure!(
            output.len() == size,
            "{} bytes in place of {size}",
            output.len()
        );
        ensure!(numbered(output.lines(), "line ")? == lines);
        ensure!(output.lines().skip(1).all(|line| line.len() == bytes - 1));
    }
    Ok(())
}

fn reader() -> App {
    App::sh("echo ready; while read line; do echo \"got $line\"; done; echo end; exit 4")
        .network(Network::Own)
        .ports(&[8080])
        .annotation("scaledown-duration", "1h")
        .stdin(Stdin::Pipe)
}

fn input_wakes(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(reader())?;
    container.stdout()?.wait_for("ready\n")?;
    for number in 0..5 {
        container.sleep()?;
        container.write_stdin(format!("word {number}\n").as_bytes())?;
        container
            .stdout()?
            .wait_for(&format!("got word {number}\n"))?;
        // The line may be here before the shim says that it runs.
        let status = container.wait_state("running")?;
        ensure_woken_by("attach", &status)?;
    }
    let expected = "ready\n".to_owned()
        + &(0..5)
            .map(|number| format!("got word {number}\n"))
            .collect::<String>();
    ensure!(
        container.stdout()?.text() == expected,
        "{:?}",
        container.stdout()?.text()
    );
    Ok(())
}

fn input_of_many_lines(node: &Node, _: Runtime) -> Result<()> {
    let mut container = node.run(reader())?;
    container.stdout()?.wait_for("ready\n")?;
    container.sleep()?;
    // More than all the pipes on the way hold.
    let lines: Vec<_> = (0..20_000).map(|number| format!("{number:019}")).collect();
    container.write_stdin((lines.join("\n") + "\n").as_bytes())?;
    container.close_stdin()?;
    ensure!(container.wait()?.status == 4);
    container.delete_task()?;
    let output = String::from_utf8(container.stdout()?.wait_end()?).context("no text")?;
    let expected: String = lines.iter().map(|line| format!("got {line}\n")).collect();
    ensure!(
        output == format!("ready\n{expected}end\n"),
        "{} bytes",
        output.len()
    );
    Ok(())
}

fn closed_input_wakes(node: &Node, _: Runtime) -> Result<()> {
    let mut container = node.run(reader())?;
    container.stdout()?.wait_for("ready\n")?;
    container.sleep()?;
    container.close_stdin()?;
    ensure!(container.wait()?.status == 4);
    container.stdout()?.wait_for("end\n")
}
