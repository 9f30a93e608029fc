//! The test image that nearly all tests run their containers from: Python, a shell and our applications. Each containerd of
//! a test unpacks it, some of them on an emulated processor.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use walkdir::WalkDir;

use super::images::{
    BASE, BASE_PLACE, architecture, check_archive, image_of_apps, made_of, packed, sources,
};
use super::oci;
use super::{Cache, Item, Work, files, programs, small};
use crate::process;

/// Counts up whenever the image is made in another way.
const RECIPE: u32 = 1;

/// In the base's file system.
const PROGRAM: &str = "/usr/bin/python3";
/// Folders of `/usr/lib/python3.*` for which no test has a use.
const LEFT_OUT: &[&str] = &["ensurepip", "lib2to3", "pydoc_data", "test", "unittest"];

/// `podmotion.test/apps:1`.
pub struct Apps;

impl Item for Apps {
    fn name(&self) -> &str {
        "apps-image"
    }

    fn why(&self) -> &str {
        "test image podmotion.test/apps:1, with Python"
    }

    fn needs(&self) -> &[&str] {
        &["packages", BASE]
    }

    fn place(&self) -> Option<&str> {
        Some("images/apps.tar")
    }

    fn recipe(&self, cache: &Cache) -> Result<String> {
        Ok(format!("{RECIPE} {} {LEFT_OUT:?}", made_of(cache)?))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        let base = work.cache.path(BASE_PLACE).join("root");
        let root = files::with_suffix(partial, ".root");
        files::remove(&root)?;
        small::busybox(&base, &root)?;
        let version = python(&base, &root)?;
        let layers = [".layer", ".apps"].map(|suffix| files::with_suffix(partial, suffix));
        small::pack(&root, &layers[0])?;
        let program = files::with_suffix(partial, ".program");
        programs::compile_static(&sources().join("iouring.c"), &program)?;
        let mut content = packed(&sources())?;
        content.push(("apps/iouring".to_owned(), program.clone()));
        oci::write_layer(&layers[1], &content)?;
        files::remove(&program)?;
        let (architecture, labels) = (architecture()?, BTreeMap::new());
        let image = image_of_apps("podmotion.test/apps:1", &architecture, &labels);
        oci::write_archive(partial, &image, &layers)?;
        for layer in &layers {
            files::remove(layer)?;
        }
        files::remove(&root)?;
        Ok(version)
    }

    fn check(&self, place: &Path) -> Result<()> {
        check_archive(place)
    }
}

/// Copies Python from `base` to `root`, and says which it is.
fn python(base: &Path, root: &Path) -> Result<String> {
    small::copy_program(base, root, PROGRAM)?;
    let said = process::answer(super::rootfs::inside(root).args([PROGRAM, "--version"]))?;
    let version = said.trim().trim_start_matches("Python ").to_owned();
    let name = version
        .rsplit_once('.')
        .map(|(line, _)| format!("python{line}"))
        .with_context(|| format!("{PROGRAM} says that it is {said:?}"))?;
    let library = base.join("usr/lib").join(name);
    let files = WalkDir::new(&library)
        .into_iter()
        .filter_entry(|entry| !LEFT_OUT.iter().any(|name| entry.file_name() == *name));
    for entry in files {
        let entry = entry.with_context(|| format!("cannot list {}", library.display()))?;
        let inside = entry
            .path()
            .strip_prefix(base)
            .with_context(|| format!("{} is elsewhere", entry.path().display()))?;
        if !entry.file_type().is_file() {
            continue;
        }
        if inside
            .extension()
            .is_some_and(|extension| extension == "so")
        {
            let path = inside
                .to_str()
                .with_context(|| format!("{} is not UTF-8", inside.display()))?;
            small::copy_program(base, root, &format!("/{path}"))?;
        } else {
            files::copy(entry.path(), &root.join(inside))?;
        }
    }
    Ok(version)
}
