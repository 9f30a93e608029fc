//! What a pod costs beside its containers.

use crate::value::ByteSize;

/// Memory of one pod's shim, rounded up: the pod overhead of the RuntimeClass.
///
/// `cargo xtask bench` measures it (`docs/sleep-depths.md`): the shim's pages 0.81 MB, its keeper's 0.13 MB
/// and page tables of both 0.13 MB while a container is in light sleep, and what the kernel keeps for
/// them, about 0.47 MB. Awake and in deep sleep it is less. A shim that waits uses no CPU.
pub const SHIM_MEMORY: ByteSize = ByteSize::mebibytes(2);
