//! Keeps runc's own record of a container true after a restore.
//!
//! runc finds a container's init process through `state.json` in its root directory
//! (libcontainer's `State`): the pid, its start time in clock ticks (field 22 of
//! `/proc/<pid>/stat`, so that a reused pid is not taken for the container) and the paths of its
//! namespaces. A restore that runc has not done itself changes all three.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

/// What can go wrong while runc's state is brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum RuncStateError {
    /// The state file, or the process's entry in `/proc`, could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The state file is not the JSON object that runc 1.1 to 1.3 write.
    #[error("{path} is not a runc state file: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The new state could not be put in place; the old one is still there.
    #[error("write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Writes `pid` (a live process) into the `state.json` below `container_dir`
/// (`<runc root>/<container id>`). The file is replaced in one step: runc sees the old or the new one.
pub fn refresh(container_dir: &Path, pid: i32) -> Result<(), RuncStateError> {
    let path = container_dir.join("state.json");
    let text = fs::read(&path).map_err(|source| RuncStateError::Read {
        path: path.clone(),
        source,
    })?;
    let start = start_time(Path::new("/proc"), pid)?;
    let new = rewrite(&path, &text, pid, start)?;
    replace(&path, &new).map_err(|source| RuncStateError::Write { path, source })
}

/// Start time of `pid` in clock ticks since boot. The command name may hold blanks and
/// parentheses, so fields are counted from the last `)` (proc_pid_stat(5)).
fn start_time(proc: &Path, pid: i32) -> Result<u64, RuncStateError> {
    let path = proc.join(pid.to_string()).join("stat");
    let stat = fs::read_to_string(&path).map_err(|source| RuncStateError::Read {
        path: path.clone(),
        source,
    })?;
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| RuncStateError::Format {
            path,
            what: "no start time in field 22".into(),
        })
}

fn rewrite(path: &Path, text: &[u8], pid: i32, start: u64) -> Result<Vec<u8>, RuncStateError> {
    let wrong = |what: String| RuncStateError::Format {
        path: path.to_owned(),
        what,
    };
    let mut state: Map<String, Value> =
        serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
    let old = state
        .get("init_process_pid")
        .and_then(Value::as_i64)
        .ok_or_else(|| wrong("no init_process_pid".into()))?;
    if !state.contains_key("init_process_start") {
        return Err(wrong("no init_process_start".into()));
    }
    let paths = state
        .get_mut("namespace_paths")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| wrong("no namespace_paths".into()))?;
    let (from, to) = (format!("/proc/{old}/ns/"), format!("/proc/{pid}/ns/"));
    for value in paths.values_mut() {
        if let Some(kind) = value.as_str().and_then(|path| path.strip_prefix(&from)) {
            *value = Value::String(format!("{to}{kind}"));
        }
    }
    state.insert("init_process_pid".into(), pid.into());
    state.insert("init_process_start".into(), start.into());
    serde_json::to_vec(&state).map_err(|e| wrong(e.to_string()))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("json.podmotion");
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"id":"c1","init_process_pid":42,"init_process_start":7,
        "created":"2026-01-01T00:00:00Z","namespace_paths":{"NEWNET":"/run/netns/p","NEWPID":"/proc/42/ns/pid"},
        "config":{"memory":9223372036854771712}}"#;

    fn rewritten(text: &str) -> Result<Value, RuncStateError> {
        let bytes = rewrite(Path::new("state.json"), text.as_bytes(), 4242, 99)?;
        Ok(serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn only_what_belongs_to_the_old_process_changes() {
        let new = rewritten(STATE).unwrap();
        assert_eq!(new["init_process_pid"], 4242);
        assert_eq!(new["init_process_start"], 99);
        assert_eq!(new["namespace_paths"]["NEWPID"], "/proc/4242/ns/pid");
        assert_eq!(new["namespace_paths"]["NEWNET"], "/run/netns/p");
        assert_eq!(new["config"]["memory"], 9223372036854771712u64);
        assert_eq!(new["created"], "2026-01-01T00:00:00Z");
    }

    #[test]
    fn a_file_of_another_form_is_refused_and_named() {
        for text in [
            "",
            "[]",
            r#"{"init_process_pid":1}"#,
            r#"{"init_process_start":1,"init_process_pid":1}"#,
        ] {
            let error = rewritten(text).unwrap_err().to_string();
            assert!(
                error.starts_with("state.json is not a runc state file"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_start_time_is_found_behind_a_name_with_parentheses() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("5")).unwrap();
        let fields = (3..30).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        fs::write(dir.path().join("5/stat"), format!("5 (a) b (c) {fields}")).unwrap();
        assert_eq!(start_time(dir.path(), 5).unwrap(), 22);
    }
}
