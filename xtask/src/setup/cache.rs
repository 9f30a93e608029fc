//! The cache: where things are, and stamps that say what each was made from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::files;

/// The folder that holds everything setup brings.
pub struct Cache {
    root: PathBuf,
}

/// What an item was made from.
#[derive(Serialize, Deserialize)]
pub struct Stamp {
    /// The item's recipe at that time.
    pub recipe: String,
    /// Where the cache was: binaries in it carry absolute paths.
    pub cache: PathBuf,
    /// The version that the item turned out to be.
    pub version: String,
    /// How long the making took.
    pub seconds: f64,
    /// Size on disk.
    pub bytes: u64,
}

impl Cache {
    /// The cache at `$PODMOTION_CACHE`, else `~/.cache/podmotion`. Nothing is created.
    ///
    /// # Errors
    /// When neither that variable nor `HOME` is set, or the path cannot be made absolute.
    pub fn from_env() -> Result<Self> {
        let root = match std::env::var_os("PODMOTION_CACHE").filter(|value| !value.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => std::env::home_dir()
                .context("neither PODMOTION_CACHE nor HOME is set: no place for the cache")?
                .join(".cache/podmotion"),
        };
        let root = std::path::absolute(&root)
            .with_context(|| format!("no absolute path for the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// The cache at `root`.
    #[cfg(test)]
    pub(super) fn at(root: &Path) -> Self {
        let root = root.to_owned();
        Self { root }
    }

    /// The cache's own folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of something in the cache.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Keeps other setups out until the answer is dropped; waits for one that is running.
    pub(super) fn lock(&self) -> Result<File> {
        files::make_dir(&self.root)?;
        let path = self.path("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// The stamp of an item, if it has a readable one.
    pub(super) fn stamp(&self, item: &str) -> Option<Stamp> {
        let text = fs::read(self.stamp_path(item)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(super) fn is_current(&self, item: &str, recipe: &str, place: Option<&str>) -> Result<bool> {
        let Some(stamp) = self.stamp(item) else {
            return Ok(false);
        };
        let there = match place {
            Some(place) => {
                let place = self.path(place);
                place
                    .try_exists()
                    .with_context(|| format!("cannot look for {}", place.display()))?
            }
            None => true,
        };
        Ok(there && stamp.recipe == recipe && stamp.cache == self.root)
    }

    pub(super) fn stamp_item(&self, item: &str, stamp: &Stamp) -> Result<()> {
        let path = self.stamp_path(item);
        let partial = files::with_suffix(&path, ".partial");
        files::make_parent(&path)?;
        files::write(&partial, &serde_json::to_vec_pretty(stamp)?)?;
        files::rename(&partial, &path)
    }

    pub(super) fn forget(&self, item: &str) -> Result<()> {
        files::remove(&self.stamp_path(item))
    }

    fn stamp_path(&self, item: &str) -> PathBuf {
        self.path(format!("stamps/{item}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(cache: &Cache, recipe: &str) -> Stamp {
        Stamp {
            recipe: recipe.to_owned(),
            cache: cache.root.clone(),
            version: "1".to_owned(),
            seconds: 0.5,
            bytes: 7,
        }
    }

    #[test]
    fn current_means_same_recipe_same_cache_and_still_there() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let cache = Cache {
            root: dir.path().to_owned(),
        };
        let current = |recipe| {
            cache
                .is_current("it", recipe, Some("it"))
                .expect("readable")
        };
        assert!(!current("a"), "never made");

        fs::create_dir(cache.path("it")).expect("create");
        cache.stamp_item("it", &stamp(&cache, "a")).expect("stamp");
        assert!(current("a"));
        assert!(!current("b"), "another recipe");

        let mut elsewhere = stamp(&cache, "a");
        elsewhere.cache = PathBuf::from("/elsewhere");
        cache.stamp_item("it", &elsewhere).expect("stamp");
        assert!(!current("a"), "made for another cache");

        cache.stamp_item("it", &stamp(&cache, "a")).expect("stamp");
        fs::remove_dir(cache.path("it")).expect("remove");
        assert!(!current("a"), "taken away");
    }
}
