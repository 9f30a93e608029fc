//! What the self-test has seen, step by step, and the file that says so.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use podmotion_model::chain::Chain;
pub(crate) use podmotion_proto::report::{SelfTest as Report, Step};
use rustix::fs::{FlockOperation, flock};

use crate::Error;

/// A report that was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file did not do what it should.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file has no report in it.
    #[error("parse {}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's answer.
        #[source]
        source: serde_json::Error,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReportError {
    let path = path.to_owned();
    move |source| ReportError::File {
        operation,
        path,
        source,
    }
}

/// The report in the file `path`; none where there is no such file, as after the node's start.
///
/// # Errors
/// When it cannot be read, or is no report.
pub fn read(path: &Path) -> Result<Option<Report>, ReportError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed("read", path))?,
    };
    let report = serde_json::from_slice(&text).map_err(|source| ReportError::Parse {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(report))
}

/// Writes the report to the file `path`, for root only. Whoever reads the file sees the last report or this one.
pub(crate) fn write(report: &Report, path: &Path) -> Result<(), ReportError> {
    let text = serde_json::to_vec_pretty(report).map_err(|source| ReportError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let partial = path.with_extension("json.partial");
    // Of a run that was killed.
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &partial)(error));
        }
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .and_then(|mut file| file.write_all(&text))
        .map_err(failed("write", &partial))?;
    fs::rename(&partial, path).map_err(failed("write", path))
}

/// Makes the report's folder, and sees to it that no other self-test runs until the result is dropped.
pub(crate) fn lock(report: &Path) -> Result<File, Error> {
    if let Some(folder) = report.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("create", folder))?;
    }
    let path = report.with_extension("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let locked = file.and_then(|file| {
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    });
    locked.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => Error::UnderWay(path),
        _ => Error::Lock { path, source },
    })
}

/// A step that was not done: the cause, told once its name is known.
#[derive(Debug)]
pub(crate) struct NotDone;

/// Notes the steps while they are taken.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    steps: Vec<Step>,
    error: Option<String>,
}

impl Recorder {
    /// Takes a step and notes how it went. Its result comes with what it has seen.
    pub(crate) async fn step<T, E: std::error::Error>(
        &mut self,
        name: &str,
        step: impl Future<Output = Result<(T, String), E>>,
    ) -> Result<T, NotDone> {
        let began = Instant::now();
        let result = step.await;
        let (result, detail) = match result {
            Ok((value, seen)) => (Ok(value), seen),
            Err(error) => (Err(NotDone), Chain(&error).to_string()),
        };
        if result.is_err() && self.error.is_none() {
            self.error = Some(format!("{name}: {detail}"));
        }
        self.steps.push(Step {
            name: name.to_owned(),
            ok: result.is_ok(),
            millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            detail,
        });
        result
    }

    /// The report. `containerd` is its version.
    pub(crate) fn finish(self, containerd: String) -> Report {
        let uname = rustix::system::uname();
        Report {
            passed: self.error.is_none(),
            error: self.error,
            kernel: uname.release().to_string_lossy().into_owned(),
            containerd,
            podmotion: env!("CARGO_PKG_VERSION").to_owned(),
            finished: jiff::Timestamp::now().to_string(),
            steps: self.steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn report() -> Report {
        Report {
            passed: false,
            error: Some("deep: sleep: no CRIU".to_owned()),
            kernel: "6.12".to_owned(),
            containerd: "v2.1.0".to_owned(),
            podmotion: "0.1.0".to_owned(),
            finished: "2026-01-01T00:00:00Z".to_owned(),
            steps: vec![Step {
                name: "deep: sleep".to_owned(),
                ok: false,
                millis: 3,
                detail: "no CRIU".to_owned(),
            }],
        }
    }

    #[test]
    fn a_report_is_written_over_an_older_one_for_root_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("self-test.json");
        assert_eq!(read(&path).unwrap(), None);
        fs::write(path.with_extension("json.partial"), "left of a killed run").unwrap();
        for _ in 0..2 {
            write(&report(), &path).unwrap();
        }
        assert_eq!(read(&path).unwrap(), Some(report()));
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_at_once_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/self-test.json");
        let first = lock(&path).unwrap();
        let error = lock(&path).unwrap_err().to_string();
        assert!(error.contains("self-test.lock"), "{error}");
        drop(first);
        lock(&path).unwrap();
    }

    #[tokio::test]
    async fn the_first_step_that_fails_is_the_error() {
        let mut recorder = Recorder::default();
        let ok = async { Ok::<_, io::Error>((7, "seven".to_owned())) };
        assert_eq!(recorder.step("one", ok).await.unwrap(), 7);
        for name in ["two", "three"] {
            let fails = async { Err::<((), String), _>(io::Error::other("no reason")) };
            recorder.step(name, fails).await.unwrap_err();
        }
        let report = recorder.finish("v2".to_owned());
        assert!(!report.passed);
        assert_eq!(report.error.as_deref(), Some("two: no reason"));
        let seen: Vec<_> = report
            .steps
            .iter()
            .map(|step| (&*step.name, step.ok))
            .collect();
        assert_eq!(seen, [("one", true), ("two", false), ("three", false)]);
    }
}
