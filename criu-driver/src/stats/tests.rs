use super::*;

/// A statistics file with one message as CRIU writes it.
fn file(kind: u8, fields: &[(u8, u64)]) -> Vec<u8> {
    let mut message = Vec::new();
    for (number, value) in fields {
        message.push(number << 3);
        let mut rest = *value;
        while rest >= 0x80 {
            message.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        message.push(rest as u8);
    }
    let mut outer = vec![kind << 3 | 2, message.len() as u8];
    outer.extend(message);
    let mut bytes = Vec::new();
    bytes.extend(SERVICE_MAGIC.to_le_bytes());
    bytes.extend(STATS_MAGIC.to_le_bytes());
    bytes.extend((outer.len() as u32).to_le_bytes());
    bytes.extend(outer);
    bytes
}

#[test]
fn a_dump_s_numbers_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let fields = [
        (1, 477),
        (2, 93_121),
        (3, 25_834),
        (4, 6_951),
        (5, 4906),
        (7, 4816),
        (9, 0),
    ];
    fs::write(dir.path().join("stats-dump"), file(1, &fields)).unwrap();
    let stats = read_dump(dir.path()).unwrap();
    assert_eq!(stats.freezing, Duration::from_micros(477));
    assert_eq!(stats.frozen, Duration::from_micros(93_121));
    assert_eq!(stats.memwrite, Duration::from_micros(6_951));
    assert_eq!((stats.pages_scanned, stats.pages_written), (4906, 4816));
}

#[test]
fn a_restore_s_numbers_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let fields = [(1, 0), (2, 0), (3, 2), (4, 76_029), (5, 4816)];
    fs::write(dir.path().join("stats-restore"), file(2, &fields)).unwrap();
    let stats = read_restore(dir.path()).unwrap();
    assert_eq!(stats.restore, Duration::from_micros(76_029));
    assert_eq!(stats.pages_restored, 4816);
}

#[test]
fn a_file_cut_short_is_no_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = file(1, &[(1, 477), (2, 93_121)]);
    bytes.truncate(bytes.len() - 1);
    fs::write(dir.path().join("stats-dump"), bytes).unwrap();
    let error = read_dump(dir.path()).unwrap_err();
    assert!(matches!(error, StatsError::Format { .. }), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = read_dump(Path::new("/nowhere")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/stats-dump"), "{error}");
}
