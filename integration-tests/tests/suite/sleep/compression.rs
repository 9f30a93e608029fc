//! Images of light sleep that are compressed while the container sleeps.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Client, Container, Depth, Image, Network, Node, Runtime, Settings, Status, status_number,
};

use super::depth::{counter, memory_images, wait_depth};
use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::compression::a_python_image_takes_half_at_most",
        python_takes_half,
    ),
    (
        "sleep::compression::a_node_js_image_takes_half_at_most",
        node_js_takes_half,
    ),
    (
        "sleep::compression::a_wake_at_any_moment_finds_every_byte",
        woken_at_any_moment,
    ),
    (
        "sleep::compression::a_checkpoint_is_made_of_a_compressed_image",
        becomes_deep,
    ),
    (
        "sleep::compression::without_holes_an_image_stays_plain_and_says_why",
        without_holes,
    ),
    ("sleep::compression::none_is_none", none),
];

/// A service that holds records, as services do.
const RECORDS: &str = r#"
import http.server, json
records = {n: {"id": n, "name": f"customer {n}", "email": f"customer.{n}@example.org", "orders": [n * 7 % 1000, n % 13]} for n in range(20000)}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        total = sum(record["id"] for record in records.values()) if self.path == "/all" else records[17]["id"]
        body = json.dumps({"total": total}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("listening", flush=True)
server.serve_forever()
"#;

/// Compresses images as soon as they are written.
pub(super) fn at_once(node: &Node) -> Result<Settings> {
    ensure!(node.depth() == Depth::Light);
    node.set("checkpoint.compress_after = \"1ms\"\n")
}

/// Waits until something has become of the image, and says what.
pub(super) fn wait_compressed(container: &Container) -> Result<Status> {
    container
        .sleeper()
        .wait_until("what becomes of its image", |status| {
            !status.last_sleep.compression.is_empty()
        })
}

/// What a folder's files take on the disk.
fn disk_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

fn resident_bytes(container: &Container) -> Result<u64> {
    let mut kib = 0;
    for pid in container.pids()? {
        kib += status_number(pid.try_into()?, "VmRSS")?;
    }
    Ok(kib << 10)
}

fn python_takes_half(node: &Node, runtime: Runtime) -> Result<()> {
    let app = App::new(["python3", "-c", RECORDS]);
    let container = takes_half(node, app.network(Network::Own).runtime(runtime), "/")?;
    let all = Client::default().get(container.address(8080)?, "/all")?;
    ensure!(all.body.contains("199990000"), "{all:?}");
    Ok(())
}

fn node_js_takes_half(node: &Node, runtime: Runtime) -> Result<()> {
    let app = App::new(["node", "/apps/server.js"])
        .image(Image::Software)
        .env("MEM_MB", "0");
    takes_half(node, app.network(Network::Own).runtime(runtime), "/").map(drop)
}

fn takes_half(node: &Node, app: App, path: &str) -> Result<Container> {
    let _settings = at_once(node)?;
    let container = node.run(app.annotation("scaledown-duration", "1h"))?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    let visit = || -> Result<()> {
        let answer = Client::default().get(address, path)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    };
    for round in 0..5 {
        visit()?;
        container.sleeper().wait_whole()?;
        let resident = resident_bytes(&container)?;
        container.sleep()?;
        let status = wait_compressed(&container)?;
        let last = &status.last_sleep;
        ensure!(last.compression == "lz4", "{status:?}");
        let image = disk_bytes(&memory_images(&container))?;
        eprintln!(
            "round {round}: {resident} bytes resident, {} moved, {} plain for the wake, image {image}",
            last.memory_bytes, last.working_set_bytes
        );
        ensure!(
            image <= resident / 2,
            "round {round}: an image of {image} bytes for {resident}: {status:?}"
        );
        // The working set is beside what is told.
        ensure!(
            status.image_bytes <= image && image < status.image_bytes + (1 << 20),
            "{image}: {status:?}"
        );
    }
    visit()?;
    Ok(container)
}

fn woken_at_any_moment(node: &Node, _: Runtime) -> Result<()> {
    let _settings = at_once(node)?;
    let container = counter(node, "never", 10)?;
    let address = container.address(8080)?;
    for number in 1..=20 {
        ensure!(visit(address)? == number);
        container.sleep()?;
        thread::sleep(Duration::from_millis(number * 20));
    }
    ensure!(visit(address)? == 21);
    Ok(())
}

fn becomes_deep(node: &Node, runtime: Runtime) -> Result<()> {
    let _settings = at_once(node)?;
    let app = App::new(["python3", "-c", RECORDS])
        .network(Network::Own)
        .runtime(runtime)
        .annotation("scaledown-duration", "1h")
        .annotation("deep-sleep-after", "30s");
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    container.sleep()?;
    let status = wait_compressed(&container)?;
    ensure!(
        status.depth == "light" && status.last_sleep.compression == "lz4",
        "{status:?}"
    );
    let deep = wait_depth(&container, "deep")?;
    ensure!(deep.last_sleep.compression.is_empty(), "{deep:?}");
    let all = Client::default().get(container.address(8080)?, "/all")?;
    ensure!(all.body.contains("199990000"), "{all:?}");
    Ok(())
}

/// A file system in memory whose files have no holes.
struct NoHoles<'a>(&'a Path);

impl<'a> NoHoles<'a> {
    fn mount(folder: &'a Path) -> Result<Self> {
        fs::create_dir_all(folder).context("make a mount point")?;
        let status = Command::new("mount")
            .args(["-t", "ramfs", "podmotion"])
            .arg(folder)
            .status()
            .context("run mount")?;
        ensure!(status.success(), "mount: {status}");
        Ok(Self(folder))
    }
}

impl Drop for NoHoles<'_> {
    fn drop(&mut self) {
        // What is busy goes with the test's mount namespace.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

fn without_holes(node: &Node, _: Runtime) -> Result<()> {
    ensure!(node.depth() == Depth::Light);
    let folder = node.folder().join("no-holes");
    let _mounted = NoHoles::mount(&folder)?;
    let _settings = node.set(&format!(
        "checkpoint.directory = \"{}\"\ncheckpoint.compress_after = \"1ms\"\n",
        folder.display()
    ))?;
    let container = counter(node, "never", 10)?;
    container.sleep()?;
    let status = wait_compressed(&container)?;
    let said = &status.last_sleep.compression;
    ensure!(
        said.starts_with("none: the file system of") && said.contains("cannot give up parts"),
        "{status:?}"
    );
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}

fn none(node: &Node, _: Runtime) -> Result<()> {
    ensure!(node.depth() == Depth::Light);
    let _settings =
        node.set("checkpoint.compression = \"none\"\ncheckpoint.compress_after = \"1ms\"\n")?;
    let container = counter(node, "never", 10)?;
    container.sleep()?;
    let before = disk_bytes(&memory_images(&container))?;
    thread::sleep(Duration::from_millis(300));
    let status = container.status()?;
    ensure!(status.last_sleep.compression.is_empty(), "{status:?}");
    ensure!(disk_bytes(&memory_images(&container))? == before);
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}
