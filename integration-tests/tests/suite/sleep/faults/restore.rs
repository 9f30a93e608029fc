//! Wakes that cannot be had.

use std::fs;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{App, Client, Container, Node, Runtime, State};

use super::fake::{Fake, Mode};
use super::{count, images};

/// Enough memory to be restored lazily.
fn large(node: &Node) -> Result<Container> {
    let container = node.run(App::counter().mem_mb(80))?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

pub(super) fn second_try(node: &Node, _: Runtime) -> Result<()> {
    let fake = Fake::new(node, "")?;
    let container = large(node)?;
    ensure!(count(&container)? == 1);
    container.sleep()?;
    fake.set(Mode::ExitLazy)?;
    ensure!(count(&container)? == 2);
    ensure!(fake.calls()?.iter().filter(|call| *call != "Lazy").count() <= 2);
    let status = container.status()?;
    ensure!(
        (status.counters.wakes, status.counters.wakes_failed) == (1, 1),
        "{status:?}"
    );
    ensure!(
        !status.last_wake.lazy && status.last_error.contains("Error (fake/cr.c:7)"),
        "{status:?}"
    );
    Ok(())
}

pub(super) fn exit(node: &Node, _: Runtime) -> Result<()> {
    let fake = Fake::new(node, "")?;
    let container = large(node)?;
    container.sleep()?;
    fake.set(Mode::ExitRestore)?;
    let sleeper = container.sleeper();
    let Err(refused) = container.wake() else {
        bail!("a wake without a CRIU that restores");
    };
    let told = podmotion_integration_tests::refusal(&refused).context("no answer")?;
    ensure!(told.contains("Error (fake/cr.c:7)"), "{told}");
    let exit = node.events().wait_for_exit(container.id())?;
    ensure!(exit.exit_status == 255, "{exit:?}");
    // Lazily once, then once without.
    let calls = fake.calls()?;
    let of = |what: &str| calls.iter().filter(|call| *call == what).count();
    ensure!((of("Lazy"), of("Restore")) == (1, 2), "{calls:?}");
    let status = sleeper.status()?;
    ensure!(
        status.state == "stopped" && status.counters.wakes_failed == 2,
        "{status:?}"
    );
    ensure!(
        status.last_error.contains("Error (fake/cr.c:7)"),
        "{status:?}"
    );
    ensure!(container.state()? == State::Stopped && container.wait()?.status == 255);
    let images = images(&container);
    ensure!(images.join("manifest.json").exists(), "no images are kept");
    container.delete_task()?;
    ensure!(!images.exists(), "images outlive the container");
    Ok(())
}

pub(super) fn cold_start(node: &Node, _: Runtime) -> Result<()> {
    let fake = Fake::new(node, "checkpoint.on_restore_failure = \"cold-start\"")?;
    let container = large(node)?;
    ensure!(count(&container)? == 1);
    container.sleep()?;
    fake.set(Mode::ExitRestore)?;
    ensure!(container.wake().is_err(), "a wake without a CRIU");
    let status = container
        .sleeper()
        .wait_until("a cold start", |status| status.counters.cold_starts == 1)?;
    ensure!(
        status.last_error.contains("Error (fake/cr.c:7)"),
        "{status:?}"
    );
    container.wait_state("running")?;
    // It prints this a second time.
    container.stdout()?.wait_for_times("listening", 2)?;
    ensure!(count(&container)? == 1, "it has kept its state");
    ensure!(container.state()? == State::Running);
    let events = node.events().of(container.id());
    ensure!(
        events.iter().all(|event| event.topic != "/tasks/exit"),
        "{events:?}"
    );
    // It goes on as any other.
    fake.set(Mode::Real)?;
    container.sleep()?;
    ensure!(count(&container)? == 2);
    Ok(())
}

pub(super) fn damaged_images(node: &Node, _: Runtime) -> Result<()> {
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let half: Damage = |mut bytes| {
        bytes.truncate(bytes.len() / 2);
        bytes
    };
    let flip: Damage = |mut bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    for (image, damage, why) in [
        ("pages-1.img", half, "were written"),
        ("core-1.img", flip, "does not match its checksum"),
    ] {
        let container = node.run(App::counter())?;
        container.stdout()?.wait_for("listening")?;
        container.sleep()?;
        let path = images(&container).join(image);
        let whole = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        fs::write(&path, damage(whole)).context("damage an image")?;
        // A client wakes it, and is not left waiting.
        let address = container.address(8080)?;
        let client = thread::spawn(move || Client::default().get(address, "/"));
        let exit = node.events().wait_for_exit(container.id())?;
        ensure!(exit.exit_status == 255, "{exit:?}");
        let status = container.status()?;
        ensure!(
            status.last_error.contains(why) && status.last_error.contains(image),
            "{status:?}"
        );
        let answer = client.join();
        ensure!(
            matches!(answer, Ok(Err(_))),
            "a container that is gone answered: {answer:?}"
        );
    }
    Ok(())
}
