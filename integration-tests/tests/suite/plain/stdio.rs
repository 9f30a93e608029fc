//! Streams: nothing lost, nothing twice, ends where they belong.

use std::fs;

use anyhow::{Result, ensure};
use podmotion_integration_tests::{App, Exec, Node, Runtime, Stdin, Stdout};

const LINES: usize = 100_000;

/// Prints 100,000 lines of 105 bytes, each with its number.
const MANY_LINES: &str = r#"awk 'BEGIN { for (i = 0; i < 100000; i++) printf "%0104d\n", i }'"#;

fn check_lines(bytes: &[u8]) -> Result<()> {
    ensure!(bytes.len() == LINES * 105, "{} bytes", bytes.len());
    for (number, line) in bytes.chunks(105).enumerate() {
        let expected = format!("{number:0104}\n");
        ensure!(
            line == expected.as_bytes(),
            "line {number} is {:?}",
            String::from_utf8_lossy(line)
        );
    }
    Ok(())
}

pub(super) fn stdout_10_mb(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(App::sh(MANY_LINES).runtime(runtime))?;
    ensure!(container.wait()?.status == 0);
    container.delete_task()?;
    check_lines(&container.stdout()?.wait_end()?)
}

pub(super) fn slow_reader(node: &Node, runtime: Runtime) -> Result<()> {
    let app = App::sh(&format!("{MANY_LINES}; echo done >&2"));
    let container = node.run(app.stdout(Stdout::CapturedLater).runtime(runtime))?;
    // The program blocks on its full pipe, and the shim serves all the same.
    let (exit, _) = container.exec_output(&Exec::sh("true"))?;
    ensure!(exit.status == 0);
    ensure!(container.stdout()?.bytes().is_empty());
    container.stdout()?.read_on();
    container.stderr()?.read_on();
    container.stderr()?.wait_for("done")?;
    ensure!(container.wait()?.status == 0);
    container.delete_task()?;
    check_lines(&container.stdout()?.wait_end()?)
}

pub(super) fn close_stdin(node: &Node, runtime: Runtime) -> Result<()> {
    let app = App::sh("cat; echo end").stdin(Stdin::Pipe).runtime(runtime);
    let mut container = node.run(app)?;
    container.write_stdin(b"first\n")?;
    container.stdout()?.wait_for("first\n")?;
    container.write_stdin(b"second\n")?;
    container.close_stdin()?;
    ensure!(container.wait()?.status == 0);
    ensure!(container.stdout()?.wait_end()? == b"first\nsecond\nend\n");
    Ok(())
}

pub(super) fn log_file(node: &Node, runtime: Runtime) -> Result<()> {
    let path = node.folder().join(format!("{runtime}.log"));
    let app = App::sh("echo to the file; echo errors too >&2");
    let container = node.run(app.stdout(Stdout::File(path.clone())).runtime(runtime))?;
    ensure!(container.wait()?.status == 0);
    container.delete_task()?;
    let text = fs::read_to_string(&path)?;
    if runtime == Runtime::Runc {
        // With containerd's own shim one of the two lines was seen to be missing (once in eight runs,
        // containerd 2.1); why is not known. It is the measure for nothing here.
        ensure!(
            text.contains("to the file") || text.contains("errors too"),
            "{text:?}"
        );
        return Ok(());
    }
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["errors too", "to the file"], "{text:?}");
    Ok(())
}

pub(super) fn terminal_resize(node: &Node, runtime: Runtime) -> Result<()> {
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done";
    let container = node.run(App::sh(script).terminal().runtime(runtime))?;
    container.stdout()?.wait_for("ready\r\n")?;
    container.resize(132, 43)?;
    container.stdout()?.wait_for("43 132\r\n")?;
    container.kill(libc::SIGKILL)?;
    ensure!(container.wait()?.status == 137);
    Ok(())
}

/// A process left in the container after an exec keeps that exec's pipe: its output still arrives.
pub(super) fn output_of_a_background_process(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(App::sh("sleep 1000").runtime(runtime))?;
    let process = container.exec(&Exec::sh("echo early; (sleep 0.3; echo late) &"))?;
    process.start()?;
    ensure!(process.wait()?.status == 0);
    process.stdout()?.wait_for("late")?;
    ensure!(process.stdout()?.bytes() == b"early\nlate\n");
    Ok(())
}
