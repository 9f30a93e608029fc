//! Both runtimes side by side.

use anyhow::{Result, ensure};
use podmotion_integration_tests::{App, Container, Event, Exec, Node, Reached, Runtime};

/// Runs the same with both and compares what comes out. The runtime given is not used: it is always both.
fn compare<T: PartialEq + std::fmt::Debug>(
    node: &Node,
    what: impl Fn(&Node, Runtime) -> Result<T>,
) -> Result<()> {
    let theirs = what(node, Runtime::Runc)?;
    let ours = what(node, Runtime::Podmotion)?;
    ensure!(
        ours == theirs,
        "containerd's own:\n{theirs:#?}\nours:\n{ours:#?}"
    );
    Ok(())
}

pub(super) fn events(node: &Node, _: Runtime) -> Result<()> {
    compare(node, |node, runtime| {
        let container = node.run(App::sh("sleep 1000").runtime(runtime))?;
        let first = container.pid()?;
        container.exec_output(&Exec::sh("exit 3"))?;
        container.pause()?;
        container.resume()?;
        container.kill(libc::SIGKILL)?;
        container.wait()?;
        container.delete_task()?;
        node.events().wait_for(container.id(), "/tasks/delete")?;
        let events = node.events().of(container.id());
        Ok(events
            .into_iter()
            .map(|event| simplify(event, first))
            .collect::<Vec<_>>())
    })
}

/// Leaves out what differs from run to run: ids, and pids but for whose they are.
fn simplify(event: Event, first: u32) -> String {
    let process = event.process.replace(&event.container, "<id>");
    let whose = match event.pid {
        0 => "none",
        pid if pid == first => "first",
        _ => "other",
    };
    let (topic, status) = (event.topic, event.exit_status);
    format!("{topic} process={process:?} pid={whose} status={status}")
}

pub(super) fn metrics_type(node: &Node, _: Runtime) -> Result<()> {
    compare(node, |node, runtime| {
        let container = node.run(App::sh("sleep 1000").runtime(runtime))?;
        Ok(container.metrics()?.0)
    })
}

pub(super) fn error_texts(node: &Node, _: Runtime) -> Result<()> {
    compare(node, |node, runtime| {
        let mut texts = Vec::new();
        let mut note = |what: &str, container: &Container, reached: Reached| {
            let text = match reached {
                Reached::Ok => "ok".into(),
                Reached::Refused(text) => text.replace(container.id(), "<id>"),
            };
            texts.push(format!("{what}: {}", without_numbers(&text)));
        };

        let container = node.create(App::sh("sleep 1000").runtime(runtime))?;
        note(
            "exec before start",
            &container,
            started(&container, "true")?,
        );
        container.start()?;
        note("start twice", &container, Reached::of(container.start())?);
        note(
            "create twice",
            &container,
            Reached::of(container.create_task())?,
        );
        note(
            "delete running",
            &container,
            Reached::of(container.delete_task())?,
        );
        note("exec of nothing", &container, started(&container, "")?);
        note(
            "resume running",
            &container,
            Reached::of(container.resume())?,
        );
        note("pause", &container, Reached::of(container.pause())?);
        note("pause twice", &container, Reached::of(container.pause())?);
        note(
            "exec while paused",
            &container,
            started(&container, "true")?,
        );
        container.resume()?;
        note("bad signal", &container, Reached::of(container.kill(99))?);
        {
            let mut process = container.exec(&Exec::sh("sleep 1000"))?;
            note(
                "kill before start",
                &container,
                Reached::of(process.kill(9))?,
            );
            process.start()?;
            note(
                "start exec twice",
                &container,
                Reached::of(process.start())?,
            );
            note(
                "delete running exec",
                &container,
                Reached::of(process.delete())?,
            );
            process.kill(9)?;
            process.wait()?;
            note(
                "kill finished exec",
                &container,
                Reached::of(process.kill(9))?,
            );
            note("delete exec", &container, Reached::of(process.delete())?);
            note(
                "kill deleted exec",
                &container,
                Reached::of(process.kill(9))?,
            );
        }
        container.kill(9)?;
        container.wait()?;
        note("kill stopped", &container, Reached::of(container.kill(9))?);
        note("exec in stopped", &container, started(&container, "true")?);
        note("start stopped", &container, Reached::of(container.start())?);
        note("pause stopped", &container, Reached::of(container.pause())?);
        note(
            "metrics of stopped",
            &container,
            Reached::of(container.metrics())?,
        );
        note("delete", &container, Reached::of(container.delete_task())?);
        note(
            "delete twice",
            &container,
            Reached::of(container.delete_task())?,
        );

        let missing = node.record(App::new(["/no/such/program"]).runtime(runtime))?;
        note(
            "missing program",
            &missing,
            Reached::of(missing.create_task())?,
        );
        Ok(texts)
    })
}

/// Adds and starts a process; nothing in place of a program asks for one that is not there.
fn started(container: &Container, program: &str) -> Result<Reached> {
    let exec = match program {
        "" => Exec::new(["/no/such/program"]),
        program => Exec::new([program]),
    };
    let reached = container.exec(&exec).and_then(|process| process.start());
    Reached::of(reached)
}

fn without_numbers(text: &str) -> String {
    let mut simple = String::new();
    for character in text.chars() {
        if !character.is_ascii_digit() {
            simple.push(character);
        } else if !simple.ends_with('#') {
            simple.push('#');
        }
    }
    simple
}
