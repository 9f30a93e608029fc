//! Programs whose memory is moved.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use podmotion_pager::{Moved, NotMoved};

/// A directory for images, on a file system with a disk.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

/// Compiles a C program once, from files of this directory.
pub fn compiled(name: &str, sources: &[&str]) -> PathBuf {
    static BUILT: OnceLock<tempfile::TempDir> = OnceLock::new();
    // Nobody removes it at the end: among what cargo has built it is in nobody's way.
    let directory =
        BUILT.get_or_init(|| tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    let directory = directory.path();
    let program = directory.join(name);
    if !program.exists() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/root");
        let status = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
            .arg(&program)
            .args(sources.iter().map(|source| here.join(source)))
            .status()
            .unwrap();
        assert!(status.success());
    }
    program
}

/// The moved memory, or what went wrong.
pub fn moved(result: Result<Moved, NotMoved>) -> Moved {
    match result {
        Ok(moved) => moved,
        Err(NotMoved::Unchanged { error, .. }) => panic!("not moved: {error:?}"),
        Err(NotMoved::Lost(failed)) => panic!("lost: {failed:?}"),
    }
}

/// Whether the long variants of tests run: `cargo xtask test --soak`.
pub fn soak() -> bool {
    match std::env::var("PODMOTION_SOAK") {
        Err(std::env::VarError::NotPresent) => false,
        Ok(value) if value == "1" => true,
        value => panic!("PODMOTION_SOAK is 1 or not set, not {value:?}"),
    }
}

/// Numbers that are different each time, and can be had again with `PODMOTION_SEED`.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("PODMOTION_SEED").ok().map_or_else(
            || {
                let now = std::time::SystemTime::now();
                now.duration_since(std::time::UNIX_EPOCH)
                    .unwrap()
                    .as_nanos() as u64
            },
            |seed| seed.parse().unwrap(),
        );
        eprintln!("PODMOTION_SEED={seed}");
        Self(seed)
    }

    /// Another source, for a thread of its own.
    pub fn apart(&self, number: u64) -> Self {
        let mut other = Self(self.0 ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03));
        other.below(1);
        other
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// What a file below `/proc/PID` says.
pub fn proc(pid: u32, name: &str) -> String {
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(name)).unwrap()
}
