//! The dashboard as it looks: a run of real containers that Prometheus has collected, drawn panel by panel.

mod dashboard;
mod draw;
mod play;
mod prometheus;
mod units;

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Depth, Machine, Manager, Node, Versions};
use podmotion_self_test::Options;
use serde_json::{Value, json};

use self::play::Cast;
use self::prometheus::{Prometheus, Span};
use crate::plot;
use crate::report::Progress;

/// The picture, below the project's root.
const PICTURE: &str = "docs/dashboard.png";
const ALERTS: &str = "runtimeclass/chart/rules/alerts.yaml";
/// One of them, for the checkpoint that is damaged.
const FIRES: &str = "PodmotionRestoreFailed";
/// Between two values of a panel, in seconds: the least that Grafana takes.
const STEP: u32 = prometheus::INTERVAL;

/// What will show the panels.
pub struct Picture {
    path: PathBuf,
    file: File,
}

impl Picture {
    /// Opens it and changes nothing. Before anything else: later the process has a view of the file system of
    /// its own.
    pub fn open() -> Result<Self> {
        let (path, file) = plot::open(PICTURE)?;
        Ok(Self { path, file })
    }

    /// Draws what was recorded.
    pub fn show(self, recorded: &Value) -> Result<()> {
        let path = self.path.display();
        let picture = draw::Picture::of(recorded).with_context(|| format!("cannot draw {path}"))?;
        plot::replace(&self.file)
            .and_then(|()| picture.draw(BufWriter::new(&self.file)))
            .with_context(|| format!("cannot draw {path}"))?;
        println!("{path}");
        Ok(())
    }
}

/// Runs containers, and has Prometheus answer every panel's queries. The answer is that it could be done, and
/// what was recorded.
pub fn record() -> Result<(bool, Value)> {
    let progress = Progress::new();
    progress.begin("containerd starts");
    let node = Node::start(Versions::default())?;
    node.sleep(Depth::Light)?;
    progress.begin("the node's self-test");
    self_test(&node)?;
    progress.begin("manager and Prometheus start");
    let manager = Manager::start(&node, &["--no-kubernetes"])?;
    let prometheus = Prometheus::start(&node, manager.address(), &plot::in_project(ALERTS)?)?;
    let start = prometheus::now()?;
    progress.begin("containers start");
    let pods = play::Pods::start(&node)?;
    let cast = Cast::start(&pods)?;
    cast.play(&progress)?;
    let span = Span {
        start,
        end: prometheus::now()?,
        step: STEP,
    };
    let panels = dashboard::answers(&prometheus, span)?;
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}", span.end)?;
    let alerts: Vec<&Value> = firing
        .iter()
        .map(|one| &one["metric"]["alertname"])
        .collect();
    ensure!(
        alerts.iter().any(|name| *name == FIRES),
        "a restore has failed, and of the alerts only {} fire",
        json!(alerts)
    );
    progress.end(&format!(
        "{} panels recorded over {:.0} s; alerts that fire at its end: {}",
        panels.len(),
        span.end - span.start,
        json!(alerts)
    ));
    let recorded = json!({
        "start": span.start,
        "end": span.end,
        "step": span.step,
        "panels": panels,
        "alerts": alerts,
    });
    Ok((true, recorded))
}

/// Leaves a report where the manager reads it.
fn self_test(node: &Node) -> Result<()> {
    let options = Options {
        containerd: node.socket(),
        app: node.tools().self_test_app()?,
        cgroup_parent: Some(format!("/{}", Machine::get()?.name())),
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the self-test's event loop")?;
    runtime.block_on(podmotion_self_test::run(&options))?;
    Ok(())
}
