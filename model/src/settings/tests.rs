use std::collections::HashMap;
use std::error::Error;

use super::*;

fn resolve(annotations: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let node = NodeConfig::default();
    Settings::resolve(annotations.iter().copied(), "web", &node)
}

fn with(key: &str, value: &str) -> Settings {
    resolve(&[(key, value)]).unwrap()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().copied().map(str::to_owned).collect()
}

#[test]
fn without_annotations_the_node_decides() {
    let expected = Settings {
        scaledown: Some(Duration::from_secs(60)),
        selected: true,
        ports: Ports::Listening,
        disable_checkpointing: false,
        disable_probe_detection: false,
        grpc_probes: false,
        busy_cpu: Some(0.5),
        answer_wait: Some(Duration::from_secs(120)),
        deep_sleep_after: DeepSleepAfter::After(Duration::from_secs(600)),
        terminate_asleep: TerminateAsleep::Wake,
        dry_run: false,
        migrate: BTreeSet::new(),
        live_migrate: None,
        tcp: NodeChangeTcp::Close,
    };
    assert_eq!(resolve(&[("io.kubernetes.cri.x", "y")]).unwrap(), expected);

    let node = NodeConfig::from_toml("[sleep]\nscaledown_duration = \"5s\"\nbusy_cpu = 0").unwrap();
    let own: HashMap<String, String> = HashMap::new();
    let settings = Settings::resolve(&own, "web", &node).unwrap();
    assert_eq!(settings.scaledown, Some(Duration::from_secs(5)));
    assert_eq!(settings.busy_cpu, None);
}

#[test]
fn an_annotation_wins_over_the_file() {
    let node = NodeConfig::from_toml("[sleep]\ndry_run = true\nterminate_asleep = \"discard\"\n");
    let own = [
        (annotations::SCALEDOWN_DURATION, "1m30s"),
        (annotations::BUSY_CPU, "0"),
        (annotations::ANSWER_WAIT, "3s"),
        (annotations::DEEP_SLEEP_AFTER, "0"),
        (annotations::TERMINATE_ASLEEP, "wake"),
        (annotations::DRY_RUN, "false"),
    ];
    let settings = Settings::resolve(own, "web", &node.unwrap()).unwrap();
    assert_eq!(settings.scaledown, Some(Duration::from_secs(90)));
    assert_eq!(settings.busy_cpu, None);
    assert_eq!(settings.answer_wait, Some(Duration::from_secs(3)));
    assert_eq!(settings.deep_sleep_after, DeepSleepAfter::Immediately);
    assert_eq!(settings.terminate_asleep, TerminateAsleep::Wake);
    assert!(!settings.dry_run);
}

#[test]
fn zero_is_never() {
    assert_eq!(with(annotations::SCALEDOWN_DURATION, "0").scaledown, None);
    assert_eq!(with(annotations::SCALEDOWN_DURATION, "0s").scaledown, None);
    assert_eq!(with(annotations::ANSWER_WAIT, "0").answer_wait, None);
}

#[test]
fn names_select_containers() {
    assert!(with(annotations::CONTAINER_NAMES, "admin, web").selected);
    assert!(!with(annotations::CONTAINER_NAMES, "webs").selected);
}

#[test]
fn ports_are_those_of_the_container() {
    let map = "web=8080,8443;admin=9000";
    assert_eq!(
        with(annotations::PORTS_MAP, map).ports,
        Ports::Fixed(BTreeSet::from([8080, 8443]))
    );
    assert_eq!(
        with(annotations::PORTS_MAP, "admin=9000").ports,
        Ports::Listening
    );
    assert_eq!(
        with(annotations::PORTS_MAP, " admin = 9000 ; web = 80 , 81 ").ports,
        Ports::Fixed(BTreeSet::from([80, 81]))
    );
}

#[test]
fn the_rest_is_taken_as_written() {
    assert!(with(annotations::DISABLE_CHECKPOINTING, "true").disable_checkpointing);
    assert!(with(annotations::DISABLE_PROBE_DETECTION, "true").disable_probe_detection);
    assert!(with(annotations::GRPC_PROBES, "true").grpc_probes);
    assert_eq!(
        with(annotations::MIGRATE, "b,a").migrate,
        names(&["a", "b"])
    );
    assert_eq!(
        with(annotations::LIVE_MIGRATE, "db")
            .live_migrate
            .as_deref(),
        Some("db")
    );
    assert_eq!(with(annotations::TCP, "keep").tcp, NodeChangeTcp::Keep);
    assert_eq!(
        with(annotations::DEEP_SLEEP_AFTER, "never").deep_sleep_after,
        DeepSleepAfter::Never
    );
}

#[test]
fn the_message_names_annotation_value_and_form() {
    let error = resolve(&[(annotations::SCALEDOWN_DURATION, "10 s")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "annotation komodor.com/podmotion-scaledown-duration: \"10 s\" is not valid: \
         expected a Go duration such as 30s or 1m30s, 0 for never"
    );
    assert_eq!(
        error.source().unwrap().to_string(),
        "unknown unit \" s\", expected one of h, m, s, ms, us, ns"
    );
}

#[test]
fn wrong_values_never_become_defaults() {
    for (key, values) in [
        (
            annotations::SCALEDOWN_DURATION,
            &["", "60", "-1s", "never", "1d"][..],
        ),
        (
            annotations::CONTAINER_NAMES,
            &["", "a,", ",a", "a b", "a;b"],
        ),
        (
            annotations::PORTS_MAP,
            &[
                "",
                "web",
                "web=",
                "=80",
                "web=0",
                "web=65536",
                "web=+80",
                "web=80;",
                "web=http",
                "web=80,",
                "web=80;web=81",
                "web=80 81",
                "web=80-90",
            ],
        ),
        (
            annotations::DISABLE_CHECKPOINTING,
            &["", "yes", "True", "1"],
        ),
        (annotations::DISABLE_PROBE_DETECTION, &["on"]),
        (annotations::GRPC_PROBES, &["TRUE"]),
        (
            annotations::BUSY_CPU,
            &["", "500m", "-1", "inf", "nan", "0,5"],
        ),
        (annotations::ANSWER_WAIT, &["", "10", "never", "-1m"]),
        (annotations::DEEP_SLEEP_AFTER, &["", "10", "Never", "-1m"]),
        (annotations::TERMINATE_ASLEEP, &["", "kill", "Wake"]),
        (annotations::DRY_RUN, &["false "]),
        (annotations::MIGRATE, &["", "a,,b"]),
        (annotations::LIVE_MIGRATE, &["", "a,b"]),
        (annotations::TCP, &["", "drop"]),
    ] {
        for value in values {
            let error = match resolve(&[(key, value)]) {
                Err(error) => error.to_string(),
                Ok(settings) => panic!("{key}={value:?} gave {settings:?}"),
            };
            let start = format!("annotation {key}: {value:?} is not valid: expected ");
            assert!(error.starts_with(&start), "{error}");
        }
    }
}

#[test]
fn an_annotation_that_does_not_exist_is_an_error() {
    let error = resolve(&[("komodor.com/podmotion-scale-down-duration", "5s")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "annotation komodor.com/podmotion-scale-down-duration does not exist: \
         did you mean komodor.com/podmotion-scaledown-duration?"
    );
}
