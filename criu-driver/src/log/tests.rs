use super::*;

/// From CRIU 4.2.1's log of the dump of a process that has an io_uring.
const IO_URING: &str = "\
(00.000971) ========================================
(00.000995) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.008623) ----------------------------------------
pie: 1: Error (criu/pie/parasite.c:588): send_fds failed (-22)
pie: 1: Close the control socket for writing
(00.008708) Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket
(00.008759) Error (compel/src/lib/infect-rpc.c:44): Message reply from daemon is trimmed (12/0)
(00.008772) Error (criu/cr-dump.c:1545): Dump files (pid: 3980) failed with -1
(00.009545) Unfreezing tasks into 1
(00.009558) Error (criu/cr-dump.c:1975): Dumping FAILED.
";

/// The form of a line from a process that is being restored.
const SYMLINK: &str = "(00.097801)      1: Error (criu/mount-v2.c:324): mnt-v2: Failed to move_mount from /lib64 to /tmp/.criu.mntns.10eR0a/mnt-0000000099: Invalid argument\n";

#[test]
fn the_first_error_is_the_cause() {
    let errors = parse(IO_URING);
    assert_eq!(
        errors.first.as_deref(),
        Some("Error (criu/pie/parasite.c:588): send_fds failed (-22)")
    );
}

#[test]
fn the_last_error_is_no_summary() {
    let errors = parse(IO_URING);
    let last = errors.last.unwrap();
    assert!(last.contains("Dump files (pid: 3980) failed"), "{last}");
}

#[test]
fn time_stamp_and_pid_are_left_out() {
    let first = parse(SYMLINK).first.unwrap();
    assert!(
        first.starts_with("Error (criu/mount-v2.c:324): mnt-v2: Failed to move_mount"),
        "{first}"
    );
}

#[test]
fn a_log_without_errors_has_none() {
    let log = "(00.1) Dumping finished successfully\n(00.2) an Error (in the middle) of text\n";
    assert_eq!(parse(log), LogErrors::default());
    assert_eq!(parse("").suffix(), "");
}

#[test]
fn a_missing_log_has_none_and_standard_error_stands_in() {
    let errors = read(Path::new("/nowhere/dump.log")).or_first(Some("exec failed".into()));
    assert_eq!(errors.suffix(), ": exec failed");
}

#[test]
fn only_the_end_of_a_large_log_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump.log");
    let mut text = "(00.000001) Error (a.c:1): early\n".to_owned();
    text.push_str(&"(00.000002) step\n".repeat(40_000));
    text.push_str("(00.000003) Error (b.c:2): late\n");
    std::fs::write(&path, text).unwrap();
    assert_eq!(read(&path).first.as_deref(), Some("Error (b.c:2): late"));
}
