use super::*;

/// A dump of a process that has an io_uring, CRIU 4.2.1 at its level for information.
const IO_URING: &str = "\
(00.000032) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.043501) Dumping opened files (pid: 3272)
(00.043525) Error (criu/pie/parasite.c:588): send_fds failed (-22)
(00.043530) Error (compel/src/lib/infect-rpc.c:66): Message reply from daemon is trimmed (12/0)
(00.043544) Error (criu/cr-dump.c:1567): Dump files (pid: 3272) failed with -1
(00.044100) Error (criu/cr-dump.c:2124): Dumping FAILED.
";

/// A restore whose external source was a symbolic link.
const SYMLINK: &str = "\
(00.097764)      1: mnt-v2: \tBind /lib64 to /tmp/.criu.mntns.10eR0a/mnt-0000000099
(00.097801)      1: Error (criu/mount-v2.c:324): mnt-v2: Failed to move_mount from /lib64 to /tmp/.criu.mntns.10eR0a/mnt-0000000099: Invalid argument
(00.098000) Error (criu/cr-restore.c:1462): 24109 exited, status=1
(00.099000) Error (criu/cr-restore.c:2320): Restoring FAILED.
";

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
    assert!(last.contains("Dump files (pid: 3272) failed"), "{last}");
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
