use std::collections::BTreeSet;

use super::*;

fn both_ways<T: Setting + PartialEq + fmt::Debug>(values: &[(&str, T)]) {
    for (text, value) in values {
        assert_eq!(T::parse(text).as_ref(), Ok(value), "{text}");
        assert_eq!(&value.render(), text);
    }
}

#[test]
fn what_is_rendered_is_read_back() {
    both_ways(&[("true", true), ("false", false)]);
    both_ways(&[("1m30s", Duration::from_secs(90))]);
    both_ways(&[("0", None), ("5s", Some(Duration::from_secs(5)))]);
    both_ways(&[("0", None), ("0.5", Some(0.5)), ("2", Some(2.0))]);
    both_ways(&[("1", 1_u32), ("4294967295", u32::MAX)]);
    both_ways(&[("/a/b", PathBuf::from("/a/b"))]);
    both_ways(&[("runc", Program::new("runc"))]);
    both_ways(&[
        ("0", ByteSize(0)),
        ("1B", ByteSize(1)),
        ("1023KiB", ByteSize(1023 << 10)),
        ("64MiB", ByteSize::mebibytes(64)),
        ("3GiB", ByteSize(3 << 30)),
        ("2TiB", ByteSize(2 << 40)),
    ]);
    both_ways(&[
        ("wake", TerminateAsleep::Wake),
        ("discard", TerminateAsleep::Discard),
    ]);
    both_ways(&[
        ("keep", NodeChangeTcp::Keep),
        ("close", NodeChangeTcp::Close),
    ]);
    both_ways(&[
        ("exit", OnRestoreFailure::Exit),
        ("cold-start", OnRestoreFailure::ColdStart),
    ]);
    both_ways(&[("lz4", Compression::Lz4), ("none", Compression::None)]);
    both_ways(&[("warn", LogLevel::Warn), ("debug", LogLevel::Debug)]);
    both_ways(&[("2", CriuLogLevel::WARNINGS)]);
    both_ways(&[
        ("0", DeepSleepAfter::Immediately),
        ("10m", DeepSleepAfter::After(Duration::from_secs(600))),
        ("never", DeepSleepAfter::Never),
    ]);
    both_ways(&[
        ("0", Share::Bytes(ByteSize(0))),
        ("100MiB", Share::Bytes(ByteSize::mebibytes(100))),
        ("1%", Share::Percent(1)),
        ("100%", Share::Percent(100)),
    ]);
    let name = |name: &str| ContainerName(name.to_owned());
    both_ways(&[("a,b", BTreeSet::from([name("a"), name("b")]))]);
    both_ways(&[(
        "admin=9000;web=80,81",
        PortsMap(
            [
                (name("admin"), BTreeSet::from([9000])),
                (name("web"), BTreeSet::from([80, 81])),
            ]
            .into(),
        ),
    )]);
}

#[test]
fn networks_are_read_back_and_have_no_bits_behind_their_prefix() {
    let network = |address: &str, prefix| Network {
        address: address.parse().unwrap(),
        prefix,
    };
    both_ways(&[
        ("10.0.0.0/8", network("10.0.0.0", 8)),
        ("10.9.0.2/32", network("10.9.0.2", 32)),
        ("0.0.0.0/0", network("0.0.0.0", 0)),
        ("fd00::/8", network("fd00::", 8)),
        ("::1/128", network("::1", 128)),
        ("::/0", network("::", 0)),
    ]);
    assert_eq!(Network::parse("10.9.0.2").unwrap().prefix, 32);
    for text in [
        "",
        "/",
        "/8",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.1/8",
        "10.0.0.0/+8",
        "10.0.0.0/-1",
        "fd00::/129",
        "fd00::1/127",
        "10.0.0.0/8/8",
        " 10.0.0.0/8",
        "pod",
        "1.1.1.1/0",
    ] {
        assert!(Network::parse(text).is_err(), "{text}");
    }
}

#[test]
fn lists_are_read_back_and_bounded() {
    let names = |names: &[&str]| List(names.iter().map(|n| ProcessName((*n).into())).collect());
    both_ways(&[
        ("", names(&[])),
        ("kubelet,k3s", names(&["kubelet", "k3s"])),
    ]);
    for text in [
        "a,,b",
        ",",
        "a,",
        "sixteen-bytes-xy",
        "a\0",
        " a",
        "1,2,3,4,5,6,7,8,9",
    ] {
        assert!(List::<ProcessName>::parse(text).is_err(), "{text}");
    }
    let longest = "x".repeat(32);
    assert!(UserAgent::parse(&longest).is_ok());
    assert!(UserAgent::parse(&format!("{longest}x")).is_err());
}

#[test]
fn sizes_have_a_unit_and_fit() {
    for text in [
        "",
        "64",
        "MiB",
        "64MB",
        "64 MiB",
        "-1MiB",
        "+1MiB",
        "1.5GiB",
        "64mib",
        "16777216TiB",
        "99999999999999999999B",
    ] {
        assert!(ByteSize::parse(text).is_err(), "{text}");
    }
    assert_eq!(ByteSize::parse("1024KiB"), Ok(ByteSize::mebibytes(1)));
}

#[test]
fn shares_are_of_all_there_is() {
    for text in ["", "%", "0%", "101%", "+5%", "5 %", "1.5%", "10"] {
        assert!(Share::parse(text).is_err(), "{text:?}");
    }
    assert_eq!(Share::Percent(10).of(5000), 500);
    assert_eq!(Share::Bytes(ByteSize(7)).of(5000), 7);
}

#[test]
fn programs_are_names_or_absolute() {
    for text in ["", "./runc", "bin/runc", "/bin/\0"] {
        assert!(Program::parse(text).is_err(), "{text:?}");
    }
}
