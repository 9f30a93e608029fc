use super::*;
use crate::value::Entry;

fn list<T: Entry>(entries: &[&str]) -> List<T> {
    List(
        entries
            .iter()
            .map(|entry| T::parse(entry).unwrap())
            .collect(),
    )
}

fn error(text: &str) -> String {
    NodeConfig::from_toml(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = NodeConfig::from_toml("").unwrap();
    assert_eq!(config, NodeConfig::default());
    assert_eq!(
        config.sleep.scaledown_duration,
        Some(Duration::from_secs(60))
    );
    assert_eq!(config.checkpoint.lazy_threshold, ByteSize(67_108_864));
    assert_eq!(config.checkpoint.on_restore_failure, OnRestoreFailure::Exit);
    assert_eq!(config.criu.log_level.get(), 2);
    assert_eq!(
        NodeConfig::from_toml("[sleep]\n[gate]").unwrap(),
        config,
        "empty sections"
    );
}

#[test]
fn the_example_with_every_key_in_use_gives_the_defaults() {
    let in_use: String = NodeConfig::example()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(in_use.matches(" = ").count(), 34);
    assert_eq!(
        NodeConfig::from_toml(&in_use).unwrap(),
        NodeConfig::default()
    );
    assert_eq!(
        NodeConfig::from_toml(&NodeConfig::example()).unwrap(),
        NodeConfig::default()
    );
}

#[test]
fn every_key_can_be_set() {
    let config = NodeConfig::from_toml(
        r#"
        [sleep]
        scaledown_duration = 0
        busy_cpu = 2
        answer_wait = "1m"
        deep_sleep_after = "never"
        dry_run = true
        terminate_asleep = "discard"
        [pressure]
        min_memory = "100MiB"
        min_disk = 0
        wake_min_memory = "5%"
        wake_wait = 0
        [checkpoint]
        directory = "/data/checkpoints"
        quota = "1GiB"
        compression = "none"
        compress_after = "5m"
        lazy_threshold = 0
        dump_timeout = "1m30s"
        restore_timeout = "1.5s"
        backoff_initial = "1s"
        backoff_max = "1s"
        on_restore_failure = "cold-start"
        [criu]
        binary = "criu"
        log_level = 0
        [runc]
        binary = "/usr/sbin/runc"
        [gate]
        pins = "/sys/fs/bpf/other"
        hold_packets = 1
        hold_bytes = "68KiB"
        disable_mptcp = false
        [probes]
        kubelets = ["kubelet"]
        [traffic]
        ignore_networks = ["10.0.0.0/8", "fd00::1"]
        ignore_user_agents = ["Prometheus/", "Uptime Kuma"]
        [shim]
        log_level = "trace"
        sockets = "/run/other"
        "#,
    )
    .unwrap();
    assert_eq!(
        config.sleep,
        SleepConfig {
            scaledown_duration: None,
            busy_cpu: Some(2.0),
            answer_wait: Some(Duration::from_secs(60)),
            deep_sleep_after: DeepSleepAfter::Never,
            dry_run: true,
            terminate_asleep: TerminateAsleep::Discard,
        }
    );
    assert_eq!(
        config.pressure,
        PressureConfig {
            min_memory: Share::Bytes(ByteSize::mebibytes(100)),
            min_disk: Share::Bytes(ByteSize(0)),
            wake_min_memory: Share::Percent(5),
            wake_wait: None,
        }
    );
    assert_eq!(
        config.checkpoint,
        CheckpointConfig {
            directory: "/data/checkpoints".into(),
            quota: Share::Bytes(ByteSize::mebibytes(1024)),
            compression: Compression::None,
            compress_after: Duration::from_secs(300),
            lazy_threshold: ByteSize(0),
            dump_timeout: Duration::from_secs(90),
            restore_timeout: Duration::from_millis(1500),
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(1),
            on_restore_failure: OnRestoreFailure::ColdStart,
        }
    );
    assert_eq!(config.criu.binary, Program::new("criu"));
    assert_eq!(config.criu.log_level.get(), 0);
    assert_eq!(config.runc.binary, Program::new("/usr/sbin/runc"));
    assert_eq!(config.gate.hold_packets, 1);
    assert_eq!(config.gate.hold_bytes, ByteSize(69_632));
    assert!(!config.gate.disable_mptcp);
    assert_eq!(config.probes.kubelets, list(&["kubelet"]));
    assert_eq!(
        config.traffic.ignore_networks,
        list(&["10.0.0.0/8", "fd00::1/128"])
    );
    assert_eq!(
        config.traffic.ignore_user_agents,
        list(&["Prometheus/", "Uptime Kuma"])
    );
    assert_eq!(config.shim.log_level, LogLevel::Trace);
    assert_eq!(config.shim.sockets, PathBuf::from("/run/other"));
}

#[test]
fn a_wrong_value_is_named_with_its_line_and_form() {
    assert_eq!(
        error("\n[sleep]\nbusy_cpu = 1\nscaledown_duration = \"10 s\" # soon\n"),
        "line 4: sleep.scaledown_duration = \"10 s\" is not valid: \
         expected a Go duration such as 30s or 1m30s, 0 for never"
    );
    for (text, message) in [
        (
            "[sleep]\nbusy_cpu = -1",
            "line 2: sleep.busy_cpu = -1 is not valid: \
             expected a number of CPU cores such as 0.5, 0 to ignore",
        ),
        (
            "[sleep]\nbusy_cpu = nan",
            "line 2: sleep.busy_cpu = nan is not valid: \
             expected a number of CPU cores such as 0.5, 0 to ignore",
        ),
        (
            "[sleep]\ndry_run = \"true\"",
            "line 2: sleep.dry_run = \"true\" is not valid: expected true or false",
        ),
        (
            "[sleep]\nscaledown_duration = 60",
            "line 2: sleep.scaledown_duration = 60 is not valid: \
             expected a Go duration such as 30s or 1m30s, 0 for never",
        ),
        (
            "[checkpoint]\ndump_timeout = \"0\"",
            "line 2: checkpoint.dump_timeout = \"0\" is not valid: \
             expected a Go duration such as 30s or 1m30s, longer than 0",
        ),
        (
            "checkpoint.directory = \"here\"",
            "line 1: checkpoint.directory = \"here\" is not valid: expected an absolute path",
        ),
        (
            "[criu]\nlog_level = 5",
            "line 2: criu.log_level = 5 is not valid: expected a whole number from 0 to 4",
        ),
        (
            "[gate]\nhold_packets = [1, 2]",
            "line 2: gate.hold_packets = [1, 2] is not valid: \
             expected a whole number from 1 to 4294967295",
        ),
        (
            "[shim]\nlog_level = \"loud\"",
            "line 2: shim.log_level = \"loud\" is not valid: \
             expected error, warn, info, debug or trace",
        ),
        (
            "[probes]\nkubelets = \"kubelet\"",
            "line 2: probes.kubelets = \"kubelet\" is not valid: expected a list of at most 8 names \
             of processes such as [\"kubelet\"], 15 bytes each",
        ),
        (
            "[traffic]\nignore_networks = [\n\"10.0.0.1/8\"]",
            "line 2: traffic.ignore_networks = [\n\"10.0.0.1/8\"] is not valid: expected a list of \
             at most 128 networks such as [\"10.0.0.0/8\", \"fd00::/8\"]",
        ),
        (
            "sleep = 5",
            "line 1: sleep = 5 is not valid: expected a section",
        ),
    ] {
        assert_eq!(error(text), message);
    }
}

#[test]
fn an_unknown_key_is_named_with_those_that_exist() {
    assert_eq!(
        error("[runc]\nbinary = \"runc\"\nroot = \"/run\""),
        "line 3: runc.root does not exist, there are binary"
    );
    assert_eq!(
        error("\n\n[slep]\ndry_run = true"),
        "line 3: slep does not exist, there are sleep, stop, pressure, checkpoint, criu, runc, gate, \
         probes, traffic, shim"
    );
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    assert!(matches!(
        NodeConfig::from_toml("[sleep]\ndry_run = \n").unwrap_err(),
        ConfigError::Syntax { line: 2, .. }
    ));
    assert!(matches!(
        NodeConfig::from_toml("[sleep]\ndry_run = true\ndry_run = false\n").unwrap_err(),
        ConfigError::Syntax { line: 3, .. }
    ));
}

#[test]
fn what_is_too_small_is_told_with_the_least() {
    assert_eq!(
        error("[checkpoint]\nbackoff_max = \"10s\""),
        "checkpoint.backoff_max = \"10s\" is not valid: expected at least \"30s\", \
         which is checkpoint.backoff_initial"
    );
    assert_eq!(
        error("[gate]\nhold_bytes = 0"),
        "gate.hold_bytes = \"0\" is not valid: expected at least \"68KiB\", \
         the size of the largest frame"
    );
}
