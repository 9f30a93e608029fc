use podmotion_proto::shim::v1::{
    AwakeReason, Container, Counters, Histogram, SleepTally, Tallies, WakeTally,
};

use super::*;
use crate::store::Report;

fn container(name: &str, state: &str) -> Container {
    let took = |counts: [u64; 3], sum_us| Histogram {
        bounds_us: vec![1_000, 250_000],
        counts: counts.to_vec(),
        sum_us,
        ..Default::default()
    };
    Container {
        id: format!("id-{name}"),
        name: name.into(),
        pod_name: "web-0".into(),
        pod_namespace: "shop".into(),
        pod_uid: "uid".into(),
        state: state.into(),
        memory_freed_bytes: 1 << 20,
        image_bytes: 4096,
        counters: Some(Counters {
            cold_starts: 1,
            ..Default::default()
        })
        .into(),
        tallies: Some(Tallies {
            sleeps: vec![SleepTally {
                depth: "light".into(),
                succeeded: 3,
                aborted: 2,
                failed: 1,
                took: Some(took([1, 1, 1], 1_500_000)).into(),
                ..Default::default()
            }],
            wakes: vec![WakeTally {
                depth: "deep".into(),
                succeeded: 5,
                failed: 2,
                lazy_succeeded: 4,
                lazy_failed: 1,
                took: Some(took([0, 5, 0], 500_000)).into(),
                ..Default::default()
            }],
            first_packet_held: Some(took([2, 0, 0], 1_000)).into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

struct Scene {
    store: watch::Sender<Store>,
    _self_test: watch::Sender<Option<SelfTest>>,
    metrics: Metrics,
}

impl Scene {
    fn new(self_test: Option<SelfTest>) -> Self {
        let (store, seen) = watch::channel(Store::default());
        let (self_test, result) = watch::channel(self_test);
        let metrics = Metrics::new(seen, result, ApiErrors::default());
        Self {
            store,
            _self_test: self_test,
            metrics,
        }
    }

    fn tell(&self, report: Report) {
        self.store.send_if_modified(|store| store.take_in(report));
    }

    fn lines(&self) -> Vec<String> {
        let text = self.metrics.text().unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_containers_series_are_what_its_shim_says() {
    let scene = Scene::new(None);
    let mut asleep = container("web", "asleep");
    asleep.awake_reason = None.into();
    scene.tell(Report::Told("a".into(), vec![asleep]));
    let lines = scene.lines();
    let of = r#"{namespace="shop",pod="web-0",container="web""#;
    for line in [
        format!(r#"podmotion_checkpoints_total{of},result="success",depth="light"}} 3"#),
        format!(r#"podmotion_checkpoints_total{of},result="aborted",depth="light"}} 2"#),
        format!(r#"podmotion_checkpoints_total{of},result="failed",depth="light"}} 1"#),
        format!(r#"podmotion_restores_total{of},result="success",kind="deep"}} 1"#),
        format!(r#"podmotion_restores_total{of},result="success",kind="deep-lazy"}} 4"#),
        format!(r#"podmotion_restores_total{of},result="failed",kind="deep"}} 1"#),
        format!(r#"podmotion_restores_total{of},result="success",kind="cold-start"}} 1"#),
        format!(r#"podmotion_checkpoint_duration_seconds_sum{of},depth="light"}} 1.5"#),
        format!(r#"podmotion_checkpoint_duration_seconds_count{of},depth="light"}} 3"#),
        format!(r#"podmotion_checkpoint_duration_seconds_bucket{of},le="0.25",depth="light"}} 2"#),
        format!(r#"podmotion_restore_duration_seconds_bucket{of},le="0.001",depth="deep"}} 0"#),
        format!("podmotion_first_byte_hold_seconds_count{of}}} 2"),
        format!(r#"podmotion_container_state{of},state="asleep"}} 1"#),
        format!(r#"podmotion_container_state{of},state="running"}} 0"#),
        format!("podmotion_memory_freed_bytes{of}}} 1048576"),
        format!("podmotion_image_bytes{of}}} 4096"),
        "podmotion_shims 1".to_owned(),
        "podmotion_shims_unreachable 0".to_owned(),
        format!(
            r#"podmotion_build_info{{version="{}"}} 1"#,
            env!("CARGO_PKG_VERSION")
        ),
    ] {
        let same = |other: &String| sorted(other) == sorted(&line);
        assert!(lines.iter().any(same), "{line} is not in {lines:#?}");
    }
    assert!(
        !lines
            .iter()
            .any(|line| line.starts_with("podmotion_awake_reason{"))
    );
    assert_eq!(lines.last().unwrap(), "# EOF");
}

/// A line whose labels have no order.
fn sorted(line: &str) -> Vec<char> {
    let mut all: Vec<char> = line.chars().collect();
    all.sort_unstable();
    all
}

#[test]
fn only_the_reason_that_holds_has_a_series() {
    let scene = Scene::new(None);
    let mut awake = container("web", "running");
    awake.awake_reason = Some(AwakeReason {
        name: "traffic".into(),
        ..Default::default()
    })
    .into();
    scene.tell(Report::Told("a".into(), vec![awake]));
    let lines = scene.lines();
    let reasons: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("podmotion_awake_reason{"))
        .collect();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(
        reasons[0].ends_with(r#"reason="traffic"} 1"#),
        "{reasons:?}"
    );
}

#[test]
fn no_series_is_left_of_a_pod_that_is_gone_or_of_a_shim_that_is_silent() {
    let scene = Scene::new(None);
    let told = || Report::Told("a".into(), vec![container("web", "asleep")]);
    scene.tell(told());
    scene.tell(Report::Silent("a".into(), "no answer".into()));
    assert!(!scene.lines().iter().any(|line| line.contains("web-0")));
    assert!(
        scene
            .lines()
            .contains(&"podmotion_shims_unreachable 1".to_owned())
    );
    scene.tell(told());
    assert!(scene.lines().iter().any(|line| line.contains("web-0")));
    scene.tell(Report::Gone("a".into()));
    assert!(!scene.lines().iter().any(|line| line.contains("web-0")));
    assert!(scene.lines().contains(&"podmotion_shims 0".to_owned()));
}

#[test]
fn a_label_with_a_quote_is_escaped() {
    let scene = Scene::new(None);
    scene.tell(Report::Told(
        "a".into(),
        vec![container("a\"b\\", "asleep")],
    ));
    let lines = scene.lines();
    let escaped = r#"container="a\"b\\""#;
    assert!(
        lines.iter().any(|line| line.contains(escaped)),
        "{lines:#?}"
    );
}

#[test]
fn a_self_test_that_never_ran_has_no_series() {
    let with = |lines: Vec<String>| -> Vec<String> {
        let of = |line: &String| line.starts_with("podmotion_self_test");
        lines.into_iter().filter(of).collect()
    };
    assert!(with(Scene::new(None).lines()).is_empty());
    let failed = SelfTest {
        holds: false,
        finished: Some(1_700_000_000.5),
        error: Some("CRIU".into()),
        outdated: false,
    };
    assert_eq!(
        with(Scene::new(Some(failed)).lines()),
        [
            "podmotion_self_test_passed 0",
            "podmotion_self_test_timestamp_seconds 1700000000.5"
        ]
    );
}
