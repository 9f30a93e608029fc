//! A container of a pod, asleep and awake again, on a real containerd: each step is checked, and says
//! what it took.

mod kept;
mod look;
mod scene;
mod steps;

use anyhow::{Result, bail};
use podmotion_integration_tests::{Node, Versions};
use serde_json::{Value, json};

use crate::stage::Stage;
use scene::Scene;
use steps::Steps;

/// Runs the demo. The answer is whether every check held, and the figures.
pub fn run(stage: &Stage, keep: bool) -> Result<(bool, Value)> {
    let mut steps = Steps::new();
    // A step that fails has said so; those after it need it.
    let played = play(stage, &mut steps, keep);
    println!("{}", steps.table());
    let error = played.err().map(|error| format!("{error:#}"));
    match &error {
        None => println!("{}", steps.summary()),
        Some(error) => eprintln!("the demo failed: {error}"),
    }
    let figures = json!({"good": error.is_none(), "error": error, "steps": steps.figures()});
    Ok((error.is_none(), figures))
}

fn play(stage: &Stage, steps: &mut Steps, keep: bool) -> Result<()> {
    let versions = Versions::default();
    let node = steps.step("containerd starts", |note| {
        note.say(versions.to_string());
        Node::start(versions)
    })?;
    let played = in_pod(stage, steps, keep, &node);
    if played.is_err() {
        let log = node.log_tail();
        let told = log.lines().filter(|line| !line.contains("level=debug"));
        eprintln!("the end of the log:");
        told.for_each(|line| eprintln!("{line}"));
    }
    drop(node);
    played?;
    steps.step("everything is taken away", |note| {
        let left = podmotion_integration_tests::own_processes()?;
        if !left.is_empty() {
            bail!("still there: {left:?}");
        }
        note.processes = Some(0);
        note.say("no process of it is left");
        Ok(())
    })
}

fn in_pod(stage: &Stage, steps: &mut Steps, keep: bool, node: &Node) -> Result<()> {
    let pod = scene::pod(steps, node)?;
    let mut scene = Scene::start(steps, node, &pod)?;
    let played = scene.play(steps);
    if keep {
        println!("{}", steps.table());
        println!("{}", look::around(node, &pod, scene.id())?);
        stage.wait_for_interrupt();
    }
    played
}
