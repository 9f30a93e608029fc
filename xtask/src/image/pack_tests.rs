use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::elf::tests::sample;

const ARCH: Arch = Arch::Arm64;

/// Programs and a CRIU bundle in a folder of their own. Their times and modes are this moment's and this machine's.
struct Sample {
    dir: tempfile::TempDir,
    source: Source,
}

impl Sample {
    fn new(backwards: bool) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut files: Vec<(String, Vec<u8>, u32)> = dist::PROGRAMS
            .iter()
            .map(|(_, program)| (format!("bin/{program}"), sample(ARCH, None), 0o755))
            .collect();
        let loader = format!("{CRIU_HOME}/lib/{}", ARCH.loader());
        files.push((
            "criu/bin/criu".to_owned(),
            sample(ARCH, Some(&loader)),
            0o755,
        ));
        for name in [
            "SOURCE",
            "licences/criu",
            "licences/texts/GPL-2",
            "lib/libc.so.6",
        ] {
            // Others' modes are the umask's.
            let mode = if backwards { 0o600 } else { 0o644 };
            files.push((format!("criu/{name}"), name.as_bytes().to_vec(), mode));
        }
        if backwards {
            files.reverse();
        }
        for (name, content, mode) in files {
            let path = dir.path().join(name);
            files::make_parent(&path).expect("folder");
            files::write(&path, &content).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        }
        files::make_dir(&dir.path().join("work")).expect("folder");
        Self {
            dir,
            source: Source {
                revision: Some("abc".to_owned()),
                time: 1_700_000_000,
            },
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pack(&self, kind: Kind) -> Result<Packed> {
        Parts {
            kind,
            arch: ARCH,
            version: "1.2.3",
            source: &self.source,
            programs: &self.path("bin"),
            criu: &self.path("criu"),
            sbom: b"{}",
            notices: "notices",
        }
        .pack("example.test/it:1.2.3", &self.path("work"))
    }

    /// (name, mode, time) of what is in a layer.
    fn layer(&self, name: &str) -> Vec<(String, u32, u64)> {
        let file = fs::File::open(self.path("work").join(name)).expect("open");
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
        tar.entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("entry");
                let header = entry.header();
                assert_eq!(header.uid().expect("owner"), 0);
                assert_eq!(header.gid().expect("group"), 0);
                (
                    entry.path().expect("path").display().to_string(),
                    header.mode().expect("mode"),
                    header.mtime().expect("time"),
                )
            })
            .collect()
    }
}

#[test]
fn the_same_parts_make_the_same_archive_wherever_and_whenever() {
    let archives = [false, true].map(|backwards| {
        let sample = Sample::new(backwards);
        Kind::ALL.map(|kind| {
            let packed = sample.pack(kind).expect("image");
            let out = sample.path("out.tar");
            packed
                .write(&out, "example.test/it:1.2.3")
                .expect("archive");
            (
                packed.digest().to_owned(),
                files::read(&out).expect("archive"),
            )
        })
    });
    assert!(archives[0] == archives[1], "digests or archives differ");
    assert_ne!(archives[0][0].0, archives[0][1].0);
}

#[test]
fn another_time_or_commit_is_another_image() {
    let mut sample = Sample::new(false);
    let digest = |sample: &Sample| {
        let packed = sample.pack(Kind::Manager).expect("image");
        packed.digest().to_owned()
    };
    let first = digest(&sample);
    sample.source.revision = Some("def".to_owned());
    let second = digest(&sample);
    sample.source.time += 1;
    assert!(first != second && second != digest(&sample));
}

#[test]
fn the_installer_has_the_programs_of_a_node_and_the_manager_its_own() {
    let sample = Sample::new(false);
    for kind in Kind::ALL {
        sample.pack(kind).expect("image");
    }
    let names = |layer: &str| -> Vec<String> {
        sample
            .layer(layer)
            .into_iter()
            .map(|(name, ..)| name)
            .collect()
    };
    let installer = names("installer-arm64-programs.tar.gz");
    for program in [
        "containerd-shim-podmotion-v1",
        "podmotion",
        "podmotion-installer",
        "podmotion-responder",
    ] {
        assert!(
            installer.contains(&format!("podmotion/bin/{program}")),
            "{program}"
        );
    }
    assert!(!installer.contains(&"podmotion/bin/podmotion-manager".to_owned()));
    assert_eq!(
        names("manager-arm64-programs.tar.gz"),
        [
            "podmotion/",
            "podmotion/LICENSE",
            "podmotion/THIRD-PARTY-LICENCES",
            "podmotion/bin/",
            "podmotion/bin/podmotion-manager",
            "podmotion/sbom.spdx.json",
        ]
    );
    for (name, mode, time) in sample.layer("installer-arm64-criu.tar.gz") {
        let executable = name.ends_with('/') || name.ends_with("bin/criu");
        assert_eq!(mode, if executable { 0o755 } else { 0o644 }, "{name}");
        assert_eq!(time, 1_700_000_000, "{name}");
    }
}

#[test]
fn labels_tell_version_commit_and_who_it_runs_as() {
    let sample = Sample::new(false);
    let out = sample.path("out.tar");
    sample
        .pack(Kind::Manager)
        .and_then(|packed| packed.write(&out, "example.test/it:1.2.3"))
        .expect("archive");
    let archive = files::read(&out).expect("archive");
    let text = String::from_utf8_lossy(&archive);
    for said in [
        r#""org.opencontainers.image.version":"1.2.3""#,
        r#""org.opencontainers.image.revision":"abc""#,
        r#""org.opencontainers.image.created":"2023-11-14T22:13:20Z""#,
        r#""org.opencontainers.image.licenses":"Apache-2.0""#,
        "Needs root, since",
        r#""Entrypoint":["/podmotion/bin/podmotion-manager"]"#,
    ] {
        assert!(text.contains(said), "{said}");
    }
    for kind in Kind::ALL {
        spdx::Expression::parse(kind.licences()).expect("SPDX expression");
    }
}

#[test]
fn a_part_that_does_not_fit_is_named() {
    type Spoil = fn(&Sample);
    let cases: [(&str, Spoil); 5] = [
        ("there is no", |it| {
            files::remove(&it.path("bin/podmotion")).expect("remove");
        }),
        ("another machine", |it| {
            files::write(&it.path("bin/podmotion"), &sample(Arch::Amd64, None)).expect("write");
        }),
        ("an image has none", |it| {
            files::write(&it.path("bin/podmotion"), &sample(ARCH, Some("/lib/ld.so")))
                .expect("write");
        }),
        ("on a node it is", |it| {
            files::write(&it.path("criu/bin/criu"), &sample(ARCH, Some("/lib/ld.so")))
                .expect("write");
        }),
        ("licences/texts/GPL-2", |it| {
            files::remove(&it.path("criu/licences/texts/GPL-2")).expect("remove");
        }),
    ];
    for (said, spoil) in cases {
        let sample = Sample::new(false);
        spoil(&sample);
        let error = sample.pack(Kind::Installer).err().expect("refused");
        assert!(format!("{error:#}").contains(said), "{said}: {error:#}");
    }
}

#[test]
fn an_image_that_is_too_large_is_refused() {
    let packed = Sample::new(false).pack(Kind::Manager).expect("image");
    let size = packed.layers_size();
    check_size(&packed, size).expect("just small enough");
    let error = check_size(&packed, size - 1).expect_err("too large");
    assert!(error.to_string().contains(&size.to_string()), "{error}");
}
