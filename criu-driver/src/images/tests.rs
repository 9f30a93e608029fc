use std::collections::BTreeSet;

use podmotion_model::manifest::{Container, Platform};

use super::*;

fn sealed() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    create(&images).unwrap();
    fs::write(images.join("core-1.img"), b"core").unwrap();
    fs::write(images.join("pages-1.img"), vec![7; 8192]).unwrap();
    fs::write(images.join("dump.log"), b"log").unwrap();
    let manifest = Manifest {
        container: Container {
            id: "c1".into(),
            name: "web".into(),
            namespace: "default".into(),
            pod: None,
            image: None,
        },
        platform: Platform {
            criu_version: "4.2.1".into(),
            kernel_release: "6.18.0".into(),
            cpu_baseline: BTreeSet::new(),
        },
        ports: [8080].into(),
        memory_bytes: 8192,
        lazy: false,
        created_unix_ms: 0,
        files: describe(&images).unwrap(),
    };
    write_manifest(&images, &manifest).unwrap();
    (dir, images)
}

#[test]
fn a_directory_is_private_and_empty() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("a/b");
    create(&images).unwrap();
    fs::write(images.join("old.img"), b"old").unwrap();
    create(&images).unwrap();
    assert_eq!(fs::read_dir(&images).unwrap().count(), 0);
    assert_eq!(fs::metadata(&images).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn untouched_images_verify_and_logs_are_not_part_of_them() {
    let (_dir, images) = sealed();
    fs::write(images.join("dump.log"), b"another log").unwrap();
    let manifest = verify(&images).unwrap();
    let names: Vec<_> = manifest.files.keys().cloned().collect();
    assert_eq!(names, ["core-1.img", "pages-1.img"]);
    assert!(manifest.files["core-1.img"].sha256.is_some());
    assert!(manifest.files["pages-1.img"].sha256.is_none());
}

#[test]
fn a_dump_that_did_not_end_is_incomplete() {
    let (_dir, images) = sealed();
    fs::remove_file(images.join(FILE_NAME)).unwrap();
    let error = verify(&images).unwrap_err();
    assert!(matches!(error, ImagesError::Incomplete { .. }), "{error}");
}

#[test]
fn truncated_pages_are_found_by_size() {
    let (_dir, images) = sealed();
    fs::write(images.join("pages-1.img"), vec![7; 4096]).unwrap();
    match verify(&images).unwrap_err() {
        ImagesError::Size {
            expected, found, ..
        } => assert_eq!((expected, found), (8192, 4096)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_changed_byte_in_a_small_image_is_found() {
    let (_dir, images) = sealed();
    fs::write(images.join("core-1.img"), b"kore").unwrap();
    let error = verify(&images).unwrap_err();
    assert!(matches!(error, ImagesError::Digest { .. }), "{error}");
}

#[test]
fn a_missing_image_is_named() {
    let (_dir, images) = sealed();
    fs::remove_file(images.join("core-1.img")).unwrap();
    let error = verify(&images).unwrap_err();
    assert!(matches!(error, ImagesError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("core-1.img"));
}

#[test]
fn a_damaged_manifest_is_not_trusted() {
    let (_dir, images) = sealed();
    let path = images.join(FILE_NAME);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("8192", "8193", 1)).unwrap();
    let error = verify(&images).unwrap_err();
    assert!(matches!(error, ImagesError::Manifest { .. }), "{error}");
}

#[test]
fn sync_takes_a_whole_directory() {
    let (_dir, images) = sealed();
    sync(&images).unwrap();
}

#[test]
fn a_directory_that_is_written_to_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let long = Duration::from_secs(60);
    wait_written(&dir.path().join("none"), long).unwrap();
    wait_written(dir.path(), long).unwrap();
    let directory = crate::criu::Directory::open(dir.path()).unwrap();
    let of_criu = directory.written_to().unwrap();
    // The process that asked for the images is gone.
    drop(directory);
    let still = wait_written(dir.path(), Duration::from_millis(1)).unwrap_err();
    let ImagesError::Io { source, .. } = still else {
        panic!("{still:?}");
    };
    assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| wait_written(dir.path(), long));
        drop(of_criu);
        waiting.join().unwrap().unwrap();
    });
}
