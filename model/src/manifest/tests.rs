use proptest::prelude::*;

use super::*;

fn example() -> Manifest {
    let file = |size, content: Option<&[u8]>| ImageFile {
        size,
        sha256: content.map(Sha256::of),
    };
    Manifest {
        container: Container {
            id: "3f2a".to_owned(),
            name: "web".to_owned(),
            namespace: "k8s.io".to_owned(),
            pod: Some(Pod {
                uid: "7c1e".to_owned(),
                name: "shop-0".to_owned(),
                namespace: "prod".to_owned(),
            }),
            image: Some("registry.example/shop@sha256:\u{e9}\"\\".to_owned()),
        },
        platform: Platform {
            criu_version: "4.2.1".to_owned(),
            kernel_release: "6.18.0".to_owned(),
            cpu_baseline: ["avx2", "sse4_2"].map(str::to_owned).into(),
        },
        ports: BTreeSet::from([80, 8080]),
        memory_bytes: 52_428_800,
        lazy: true,
        created_unix_ms: 1_800_000_000_000,
        files: BTreeMap::from([
            ("inventory.img".to_owned(), file(42, Some(b"inventory"))),
            ("pages-1.img".to_owned(), file(52_428_800, None)),
        ]),
    }
}

#[test]
fn what_is_written_is_read_back() {
    let manifest = example();
    assert_eq!(manifest.image_bytes(), 52_428_842);
    let content = manifest.to_json().unwrap();
    assert_eq!(Manifest::parse(&content).unwrap(), manifest);

    let mut bare = example();
    bare.container.pod = None;
    bare.container.image = None;
    bare.files.clear();
    assert_eq!(Manifest::parse(&bare.to_json().unwrap()).unwrap(), bare);
}

/// Images outlive the program that wrote them: this text, once written, is read for ever.
#[test]
fn the_first_format_stays_readable() {
    let content = include_bytes!("format-1.json");
    assert_eq!(Manifest::parse(content).unwrap(), example());
    assert_eq!(
        example().to_json().unwrap(),
        content,
        "a change of the format needs a new version"
    );
}

#[test]
fn every_single_bit_matters_or_changes_nothing() {
    let manifest = example();
    let content = manifest.to_json().unwrap();
    let mut refused = 0;
    for at in 0..content.len() {
        for bit in 0..8 {
            let mut damaged = content.clone();
            damaged[at] ^= 1 << bit;
            match Manifest::parse(&damaged) {
                Ok(read) => assert_eq!(read, manifest, "byte {at} bit {bit}"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > content.len() * 4, "only {refused} refused");
}

#[test]
fn a_cut_off_manifest_is_refused() {
    let content = example().to_json().unwrap();
    // The last byte is the newline behind the document.
    for length in 0..content.len() - 1 {
        assert!(Manifest::parse(&content[..length]).is_err(), "{length}");
    }
}

#[test]
fn another_version_is_told_as_such() {
    let error = Manifest::parse(br#"{"format": 7, "anything": []}"#).unwrap_err();
    assert!(matches!(error, ManifestError::Format { found: 7 }));
    assert_eq!(
        error.to_string(),
        "manifest has format 7, this version reads 1"
    );
}

#[test]
fn a_changed_value_is_damage() {
    let content = String::from_utf8(example().to_json().unwrap()).unwrap();
    let changed = content.replace("\"size\": 42", "\"size\": 43");
    assert_ne!(changed, content);
    assert!(matches!(
        Manifest::parse(changed.as_bytes()),
        Err(ManifestError::Checksum { .. })
    ));
}

#[test]
fn no_name_leads_out_of_the_directory() {
    for name in [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\0",
        FILE_NAME,
    ] {
        let mut manifest = example();
        let file = ImageFile {
            size: 1,
            sha256: None,
        };
        manifest.files.insert(name.to_owned(), file);
        assert!(
            matches!(manifest.to_json(), Err(ManifestError::Name { .. })),
            "{name:?}"
        );
        // One that somebody else wrote, with a checksum that fits.
        let forged = Document {
            format: FORMAT,
            checksum: manifest.checksum().unwrap(),
            manifest,
        };
        let content = serde_json::to_vec(&forged).unwrap();
        assert!(
            matches!(Manifest::parse(&content), Err(ManifestError::Name { .. })),
            "{name:?}"
        );
    }
    let mut manifest = example();
    manifest.container.id = "../x".to_owned();
    assert!(manifest.to_json().is_err());
}

#[test]
fn digests_are_strict_small_hex() {
    let digest = Sha256::of(b"abc");
    let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(digest.to_string(), hex);
    assert_eq!(Sha256::from_hex(hex), Some(digest));
    assert_eq!(Sha256::from_hex(&hex.to_uppercase()), None);
    assert_eq!(Sha256::from_hex(&hex[1..]), None);
    assert_eq!(Sha256::from_hex(&format!("{hex}0")), None);
}

proptest! {
    #[test]
    fn no_content_panics(content in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Manifest::parse(&content).is_err());
    }
}
