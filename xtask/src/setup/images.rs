//! The test images: Debian with the servers that people run and our test applications on top, and a pause program.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::oci::{self, Image};
use super::rootfs::{self, RootFs};
use super::{Cache, Item, Work, files, programs};
use crate::process;

/// Counts up whenever images are made in another way.
const RECIPE: u32 = 1;

pub(super) const BASE: &str = "apps-base";
pub(super) const BASE_PLACE: &str = "rootfs/apps";
const BASE_SUITE: &str = "bookworm";
const BASE_PACKAGES: &[&str] = &[
    "busybox",
    "erlang-base",
    "iproute2",
    "nginx-light",
    "nodejs",
    "openjdk-17-jdk-headless",
    "postgresql-15",
    "procps",
    "python3",
    "redis-server",
    "redis-tools",
];

/// Not unpacked: nobody reads it in a test. The folders of the manual must stay, Java's packages link into them.
/// PostgreSQL compiles nothing where it cannot load LLVM, which is larger than all the rest of it.
const LEFT_OUT: &[&str] = &[
    "/usr/lib/*/libLLVM*",
    "/usr/lib/*/libz3.so*",
    "/usr/lib/jvm/*/jmods/*",
    "/usr/lib/llvm-*",
    "/usr/lib/postgresql/*/lib/bitcode/*",
    "/usr/lib/postgresql/*/lib/llvmjit*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*/*.gz",
];

/// Files of the applications' folder that are not packed as they are.
const SOURCES: &[&str] = &[
    "README.md",
    "Server.java",
    "goserver",
    "iouring.c",
    "notroot.c",
    "pause.c",
    "server.erl",
    "tokioserver",
];

/// The root file system below the test applications: `layer.tar`, and the same unpacked in `root`.
pub struct Base;

/// `podmotion.test/software:1`. It has hundreds of megabytes: [`Apps`](super::apps::Apps) is for tests that need none of
/// its servers.
pub struct Software;

/// `podmotion.test/pause:1`.
pub struct Pause;

impl Item for Base {
    fn name(&self) -> &str {
        BASE
    }

    fn why(&self) -> &str {
        "Debian with Python, nginx, redis, PostgreSQL, Node.js, Java and Erlang, for the test images"
    }

    fn needs(&self) -> &[&str] {
        &["packages"]
    }

    fn place(&self) -> Option<&str> {
        Some(BASE_PLACE)
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok(format!(
            "{RECIPE} {BASE_SUITE} {BASE_PACKAGES:?} {LEFT_OUT:?}"
        ))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        files::make_dir(partial)?;
        let layer = partial.join("layer.tar");
        work.ui.step("making the root file system (about a minute)");
        RootFs {
            suite: BASE_SUITE,
            packages: BASE_PACKAGES,
            left_out: LEFT_OUT,
        }
        .write_tar(work, &layer)?;
        work.ui.step("unpacking it");
        let root = partial.join("root");
        rootfs::unpack(&layer, &root)?;
        let file =
            File::open(&layer).with_context(|| format!("cannot open {}", layer.display()))?;
        let (digest, _) =
            oci::digest_of(file).with_context(|| format!("cannot read {}", layer.display()))?;
        Ok(digest[..12].to_owned())
    }

    fn check(&self, place: &Path) -> Result<()> {
        for [program, version] in [
            ["python3", "--version"],
            ["nginx", "-v"],
            ["redis-server", "--version"],
            ["node", "--version"],
            ["java", "--version"],
            ["erl", "-version"],
            ["/usr/lib/postgresql/15/bin/postgres", "--version"],
        ] {
            let said =
                process::answer(rootfs::inside(&place.join("root")).args([program, version]))?;
            ensure!(
                said.contains(char::is_numeric),
                "{program} in the test image says: {said}"
            );
        }
        Ok(())
    }
}

impl Item for Software {
    fn name(&self) -> &str {
        "software-image"
    }

    fn why(&self) -> &str {
        "test image podmotion.test/software:1, with the servers that people run"
    }

    fn needs(&self) -> &[&str] {
        &["packages", "go", BASE]
    }

    fn place(&self) -> Option<&str> {
        Some("images/software.tar")
    }

    fn recipe(&self, cache: &Cache) -> Result<String> {
        Ok(format!("{RECIPE} {}", made_of(cache)?))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        let build = files::with_suffix(partial, ".build");
        files::remove(&build)?;
        files::make_dir(&build)?;
        programs::compile(work, &build)?;
        work.ui.step("packing");
        let mut content = Vec::new();
        for dir in [sources(), build.clone()] {
            content.extend(packed(&dir)?);
        }
        content.sort();
        let layer = files::with_suffix(partial, ".layer");
        oci::write_layer(&layer, &content)?;
        let base = work.cache.path(BASE_PLACE);
        let (architecture, labels) = (architecture()?, BTreeMap::new());
        let image = image_of_apps("podmotion.test/software:1", &architecture, &labels);
        oci::write_archive(partial, &image, &[base.join("layer.tar"), layer.clone()])?;
        // The unpacked root is for those who run the applications without containerd.
        files::remove(&base.join("root/apps"))?;
        rootfs::unpack(&layer, &base.join("root"))?;
        files::remove(&layer)?;
        files::remove(&build)?;
        Ok(content_hash(&sources())?[..12].to_owned())
    }

    fn check(&self, place: &Path) -> Result<()> {
        check_archive(place)
    }
}

impl Item for Pause {
    fn name(&self) -> &str {
        "pause-image"
    }

    fn why(&self) -> &str {
        "image of a pod's first container, podmotion.test/pause:1"
    }

    fn needs(&self) -> &[&str] {
        &["packages"]
    }

    fn place(&self) -> Option<&str> {
        Some("images/pause.tar")
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        let source = files::read(&sources().join("pause.c"))?;
        Ok(format!("{RECIPE} {}", oci::digest(&source)))
    }

    fn make(&self, _work: &Work<'_>, partial: &Path) -> Result<String> {
        let program = files::with_suffix(partial, ".program");
        programs::compile_static(&sources().join("pause.c"), &program)?;
        let layer = files::with_suffix(partial, ".layer");
        oci::write_layer(&layer, &[("pause".to_owned(), program.clone())])?;
        let image = Image {
            name: "podmotion.test/pause:1",
            architecture: &architecture()?,
            entrypoint: &["/pause"],
            command: &[],
            env: &[],
            labels: &BTreeMap::new(),
            created: oci::EPOCH,
        };
        oci::write_archive(partial, &image, std::slice::from_ref(&layer))?;
        files::remove(&layer)?;
        files::remove(&program)?;
        Ok("1".to_owned())
    }

    fn check(&self, place: &Path) -> Result<()> {
        check_archive(place)
    }
}

/// The image `name` with the applications.
pub(super) fn image_of_apps<'a>(
    name: &'a str,
    architecture: &'a str,
    labels: &'a BTreeMap<String, String>,
) -> Image<'a> {
    Image {
        name,
        architecture,
        entrypoint: &[],
        command: &["python3", "/apps/counter.py"],
        env: &["PYTHONDONTWRITEBYTECODE=1"],
        labels,
        created: oci::EPOCH,
    }
}

/// The version of the base that is there.
pub(super) fn base_version(cache: &Cache) -> String {
    cache
        .stamp(BASE)
        .map_or(String::new(), |stamp| stamp.version)
}

/// What an image with the applications is made from.
pub(super) fn made_of(cache: &Cache) -> Result<String> {
    let (base, apps) = (base_version(cache), content_hash(&sources())?);
    Ok(format!("base {base} apps {apps}"))
}

/// The applications' sources in the checkout.
pub(super) fn sources() -> PathBuf {
    crate::project_root().join("integration-tests/apps")
}

/// What goes to `/apps` of what is in `dir`, as (path in the image, file).
pub(super) fn packed(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let built = dir != sources();
    Ok(files_below(dir)?
        .into_iter()
        .filter(|(name, _)| {
            let top = name.split('/').next().unwrap_or(name);
            built || !SOURCES.contains(&top)
        })
        .map(|(name, path)| (format!("apps/{name}"), path))
        .collect())
}

/// All regular files below `dir`, sorted, as (relative path, file). What Python leaves behind is no source.
pub(super) fn files_below(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let relative = entry
            .path()
            .strip_prefix(dir)
            .with_context(|| format!("{} is elsewhere", entry.path().display()))?;
        let name = relative
            .to_str()
            .with_context(|| format!("{} is not UTF-8", relative.display()))?;
        if entry.file_type().is_file() && !name.contains("__pycache__") {
            found.push((name.to_owned(), entry.path().to_owned()));
        }
    }
    Ok(found)
}

/// A hash of the names and contents of all files below `dir`.
pub(super) fn content_hash(dir: &Path) -> Result<String> {
    let mut all = Sha256::new();
    for (name, path) in files_below(dir)? {
        all.update(format!("{name} {}\n", oci::digest(&files::read(&path)?)));
    }
    Ok(all
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// This machine's architecture: Debian and OCI agree on the names of those that Podmotion runs on.
pub(super) fn architecture() -> Result<String> {
    let name = process::output(process::command("dpkg").arg("--print-architecture"))?;
    Ok(name.trim().to_owned())
}

pub(super) fn check_archive(path: &Path) -> Result<()> {
    let names = process::output(process::command("tar").arg("-tf").arg(path))?;
    ensure!(
        names.lines().any(|name| name == "index.json"),
        "{} has no index",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_follows_names_and_contents() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let hash = || content_hash(dir.path()).expect("hash");
        files::write(&dir.path().join("a"), b"1").expect("write");
        let first = hash();
        files::write(&dir.path().join("a"), b"2").expect("write");
        let edited = hash();
        assert_ne!(first, edited);
        files::rename(&dir.path().join("a"), &dir.path().join("b")).expect("rename");
        assert_ne!(edited, hash());
    }

    #[test]
    fn sources_of_compiled_programs_are_not_packed() {
        let names: Vec<String> = packed(&sources())
            .expect("listed")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(names.contains(&"apps/counter.py".to_owned()));
        assert!(names.contains(&"apps/www/page.html".to_owned()));
        assert!(!names.iter().any(|name| name.ends_with(".c")
            || name.ends_with(".rs")
            || name.contains("goserver")));
    }
}
