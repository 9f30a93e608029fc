//! The result of the node's self-test, as the installer has left it.
//!
//! It holds for the kernel and the containerd that it was made with, no others: both are looked at again
//! whenever the result or containerd's socket is another.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use podmotion_self_test::{Options, Report, read_report};
use tokio::sync::watch;
use tracing::{info, warn};

use super::containerd;
use crate::folder::{Change, Folder, FolderError};

/// A result cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The file cannot be read.
    #[error(transparent)]
    Report(#[from] podmotion_self_test::ReportError),
    /// It does not say when it was made.
    #[error("{}: finished: {source}", path.display())]
    Time {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: jiff::Error,
    },
    /// The file has no folder to be watched in.
    #[error("{}: a file in a folder is needed", .0.display())]
    NoFolder(PathBuf),
    /// The kernel does not say which it is.
    #[error("ask for the kernel's version: {0}")]
    Kernel(#[source] nix::errno::Errno),
    /// Its folder cannot be watched.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// What runs on the node now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The kernel's release, as `uname -r` has it.
    pub kernel: String,
    /// containerd's version, where it is known.
    pub containerd: Option<String>,
}

/// The result, and what it is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfTest {
    /// It has passed, with what runs now.
    pub holds: bool,
    /// When it came to its end, in seconds since 1970.
    pub finished: Option<f64>,
    /// Why it does not hold.
    pub error: Option<String>,
    /// It has passed, but with another kernel or containerd.
    pub outdated: bool,
}

/// What a result is worth with what runs now. `finished` is when it came to its end.
fn judge(report: Report, finished: Timestamp, running: &Running) -> SelfTest {
    let passed = report.passed;
    let error = match report {
        Report {
            passed: false,
            error,
            ..
        } => Some(error.unwrap_or_else(|| "it failed and does not say why".to_owned())),
        Report { kernel, .. } if kernel != running.kernel => Some(format!(
            "it was made with the kernel {kernel}, and {} runs",
            running.kernel
        )),
        Report { containerd, .. } => running
            .containerd
            .as_ref()
            .filter(|now| **now != containerd)
            .map(|now| format!("it was made with containerd {containerd}, and {now} runs")),
    };
    #[expect(clippy::cast_precision_loss, reason = "milliseconds are enough")]
    let finished = finished.as_millisecond() as f64 / 1e3;
    SelfTest {
        holds: error.is_none(),
        finished: Some(finished),
        outdated: passed && error.is_some(),
        error,
    }
}

/// Reads the file; `None` where there is none.
fn read(path: &Path, running: &Running) -> Result<Option<SelfTest>, SelfTestError> {
    let Some(report) = read_report(path)? else {
        return Ok(None);
    };
    let finished = report
        .finished
        .parse()
        .map_err(|source| SelfTestError::Time {
            path: path.to_owned(),
            source,
        })?;
    Ok(Some(judge(report, finished, running)))
}

/// What runs on the node now.
async fn running(containerd: &str) -> Result<Running, SelfTestError> {
    let names = nix::sys::utsname::uname().map_err(SelfTestError::Kernel)?;
    let version = containerd::version(containerd).await;
    Ok(Running {
        kernel: names.release().to_string_lossy().into_owned(),
        containerd: version.inspect_err(|error| warn!("{error}")).ok(),
    })
}

/// Where the result is, and whom to ask for what runs.
#[derive(Clone, Debug)]
pub struct Places {
    /// The file with the result.
    pub result: PathBuf,
    /// containerd's address.
    pub containerd: String,
    /// The folder with the shims' sockets.
    pub shims: PathBuf,
    /// Make the test again when it is outdated.
    pub repeat: bool,
}

/// Keeps the result in `result`, until its folder cannot be watched any more.
///
/// # Errors
/// When it cannot be watched, or the kernel does not say which it is. A file that cannot be read is a
/// test that does not hold.
pub async fn follow(
    places: Places,
    result: watch::Sender<Option<SelfTest>>,
) -> Result<(), SelfTestError> {
    let file = &places.result;
    let no_folder = || SelfTestError::NoFolder(file.clone());
    let folder = Folder::make(file.parent().ok_or_else(no_folder)?)?;
    let socket = containerd::socket(&places.containerd);
    let of_socket = socket.as_deref().and_then(Path::parent).map(Folder::watch);
    let of_socket = of_socket.transpose().inspect_err(|error| {
        warn!("a change of containerd is not seen: {error}");
    });
    let of_socket = of_socket.ok().flatten();
    let mut now_runs = running(&places.containerd).await?;
    loop {
        let now = read(file, &now_runs).unwrap_or_else(|error| {
            Some(SelfTest {
                holds: false,
                finished: None,
                error: Some(error.to_string()),
                outdated: false,
            })
        });
        let outdated = now.as_ref().is_some_and(|now| now.outdated);
        let changed = result.send_if_modified(|known| {
            let changed = *known != now;
            if changed {
                say(now.as_ref());
                *known = now;
            }
            changed
        });
        if changed && outdated && places.repeat {
            repeat(&places);
        }
        tokio::select! {
            changed = change_of(Some(&folder), file) => changed?,
            changed = change_of(of_socket.as_ref(), socket.as_deref().unwrap_or(file)) => {
                changed?;
                now_runs = running(&places.containerd).await?;
            }
        }
    }
}

/// Waits until something has happened to a file; for ever where there is no folder to look at.
async fn change_of(folder: Option<&Folder>, file: &Path) -> Result<(), FolderError> {
    let Some(folder) = folder else {
        return std::future::pending().await;
    };
    while !folder.changes().await?.iter().any(|change| match change {
        Change::File(changed) => changed == file,
        Change::Any => true,
    }) {}
    Ok(())
}

/// Makes the test again. Its new result comes as any other.
fn repeat(places: &Places) {
    let Some(containerd) = containerd::socket(&places.containerd) else {
        warn!(
            "the self-test cannot be made again: {} is no socket",
            places.containerd
        );
        return;
    };
    info!("the self-test is made again");
    let options = Options {
        containerd,
        report: places.result.clone(),
        shims: places.shims.clone(),
        ..Options::default()
    };
    tokio::spawn(async move {
        // How it went is in its report, if there is one.
        if let Err(error) = podmotion_self_test::run(&options).await {
            warn!("{error}");
        }
    });
}

fn say(result: Option<&SelfTest>) {
    match result {
        None => info!("the node's self-test has not been made yet"),
        Some(SelfTest {
            error: Some(error), ..
        }) => warn!("the node's self-test does not hold: {error}"),
        Some(_) => info!("the node's self-test has passed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(containerd: Option<&str>) -> Running {
        Running {
            kernel: "6.12.1".into(),
            containerd: containerd.map(str::to_owned),
        }
    }

    fn at() -> Timestamp {
        Timestamp::from_second(1_767_323_045).unwrap()
    }

    fn report(passed: bool, kernel: &str) -> Report {
        let error = (!passed).then(|| "Error (criu): no".to_owned());
        Report {
            passed,
            error,
            kernel: kernel.to_owned(),
            containerd: "2.1.0".to_owned(),
            ..Report::default()
        }
    }

    #[test]
    fn a_test_that_passed_holds_for_what_it_was_made_with() {
        let passed = judge(report(true, "6.12.1"), at(), &running(Some("2.1.0")));
        assert!(passed.holds && passed.error.is_none() && !passed.outdated);
        assert_eq!(passed.finished, Some(1_767_323_045.0));
        assert!(judge(report(true, "6.12.1"), at(), &running(None)).holds);
    }

    #[test]
    fn another_kernel_or_containerd_ends_it() {
        let kernel = judge(report(true, "6.1.0"), at(), &running(None));
        assert!(kernel.outdated && !kernel.holds);
        assert_eq!(
            kernel.error.unwrap(),
            "it was made with the kernel 6.1.0, and 6.12.1 runs"
        );
        let containerd = judge(report(true, "6.12.1"), at(), &running(Some("2.2.0")));
        assert_eq!(
            containerd.error.unwrap(),
            "it was made with containerd 2.1.0, and 2.2.0 runs"
        );
    }

    #[test]
    fn a_test_that_failed_says_why() {
        let failed = judge(report(false, "6.12.1"), at(), &running(None));
        assert!(!failed.holds && !failed.outdated);
        assert_eq!(failed.error.unwrap(), "Error (criu): no");
    }

    #[tokio::test]
    async fn the_file_is_read_whenever_it_changes() {
        let folder = std::env::temp_dir().join(format!("podmotion-test-{}", std::process::id()));
        let file = folder.join("self-test.json");
        let (tell, mut seen) = watch::channel(None);
        let following = tokio::spawn({
            let file = file.clone();
            let places = Places {
                result: file,
                containerd: "unix:///nowhere/containerd.sock".into(),
                shims: "/nowhere".into(),
                repeat: false,
            };
            async move { follow(places, tell).await }
        });
        while !folder.exists() {
            tokio::task::yield_now().await;
        }
        std::fs::write(&file, "{").unwrap();
        let broken = seen.wait_for(Option::is_some).await.unwrap().clone();
        let broken = broken.unwrap();
        assert!(!broken.holds && broken.error.unwrap().contains("self-test.json"));
        std::fs::remove_file(&file).unwrap();
        seen.wait_for(Option::is_none).await.unwrap();
        following.abort();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
