//! A container that joins the PID namespace of another one of its pod, as `kubectl debug --target` makes it.
//!
//! containerd names the namespace by the pid that the other one's first process had when it was last
//! asked. In deep sleep there is neither such a process nor a namespace, so the other one wakes, and it
//! stays awake for as long as the guest lives: its end would be the guest's.

use std::path::Path;
use std::sync::Arc;

use podmotion_criu_driver::spec::Spec;

use super::command::Command;
use super::{Container, ContainerError, Phase};

/// Keeps a container awake until it is dropped.
pub type Lease = Arc<()>;

/// Prepares the bundle of a new container that joins one of `others`. None where it joins none of them.
///
/// # Errors
/// When the other one does not wake, or the bundle cannot be changed.
pub async fn join(
    bundle: &Path,
    spec: &Spec,
    others: &[Container],
) -> Result<Option<Lease>, ContainerError> {
    let Some(named) = spec.joined_pid() else {
        return Ok(None);
    };
    for other in others {
        let state = |reply| Command::State {
            exec_id: None,
            reply,
        };
        // One that has been deleted meanwhile is nobody's host.
        let Ok(state) = other.ask(state).await else {
            continue;
        };
        if state.pid != named || state.phase != Phase::Running {
            continue;
        }
        let (pid, lease) = other.ask(|reply| Command::Lend { reply }).await?;
        if pid != named {
            Spec::move_namespaces(bundle, named, pid)?;
        }
        return Ok(Some(lease));
    }
    Ok(None)
}
