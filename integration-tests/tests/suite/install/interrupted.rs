//! The installer killed between any two actions, and run again.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::Node;

use super::node::{RESTART, Run, Source, dump, files, run, same, uninstall};

/// Runs it until it has said so many lines, and kills it then. Whether it was still running.
fn kill_after(node: &Node, arguments: &[String], lines: usize) -> Result<bool> {
    let mut run = Run::start(node, arguments, &[])?;
    let mut stopped = false;
    for number in 1..=lines {
        let Some(line) = run.lines.next() else {
            break;
        };
        if line.context("hear what the installer says")? == RESTART {
            node.stop()?;
            // It waits for a containerd that is not there: with one it could be done before the kill.
            stopped = number == lines;
            if !stopped {
                node.start_again()?;
            }
        }
    }
    run.child.kill().context("kill the installer")?;
    let status = run.child.wait().context("wait for it")?;
    if stopped {
        node.start_again()?;
    }
    Ok(!status.success())
}

pub(super) fn at_every_action(node: &Node) -> Result<()> {
    let source = Source::small(node, "one")?;
    let (install, uninstall) = (source.install(), uninstall());
    let (before, (_, settings)) = (files(node)?, dump(node)?);
    let actions = run(node, &install)?.len();
    let installed = files(node)?;
    let steps = run(node, &uninstall)?.len();
    same("after uninstall", &before, &files(node)?)?;

    let valid = || -> Result<()> {
        let (_, rest) = dump(node)?;
        ensure!(rest == settings, "settings were lost:\n{rest}");
        // What is on the disk is what the next start takes, whenever that is.
        node.restart()
    };
    for lines in 0..=actions {
        let killed = kill_after(node, &install, lines)?;
        let what = format!("install killed after {lines} of {actions} lines");
        valid().context(what.clone())?;
        run(node, &install).context(what.clone())?;
        same(&what, &installed, &files(node)?)?;
        valid().context(what.clone())?;
        run(node, &uninstall).context(what.clone())?;
        same(&format!("{what}, uninstalled"), &before, &files(node)?)?;
        // The last action, with nothing to remove, is over as soon as it is told of.
        ensure!(killed || lines + 2 >= actions, "{what}: it had ended");
    }
    for lines in 0..=steps {
        run(node, &install)?;
        kill_after(node, &uninstall, lines)?;
        let what = format!("uninstall killed after {lines} of {steps} lines");
        valid().context(what.clone())?;
        run(node, &uninstall).context(what.clone())?;
        same(&what, &before, &files(node)?)?;
        // Half of it gone, the way back is open too.
        run(node, &install)?;
        kill_after(node, &uninstall, lines)?;
        run(node, &install).context(what.clone())?;
        same(&format!("{what}, installed"), &installed, &files(node)?)?;
        run(node, &uninstall)?;
    }
    Ok(())
}
