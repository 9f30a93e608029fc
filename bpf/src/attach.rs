//! Attaching pinned programs to interfaces of a network namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::links::LinkOrder;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_detach_program,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use nix::net::if_::if_nametoindex;
use thiserror::Error;

use crate::netlink;
use crate::netns::{self, NetnsError};

/// Program for the ingress of `eth0` and `lo`.
pub const GATE_PROGRAM: &str = "gate_ingress";
/// Program for the ingress of the tap.
pub const TAP_PROGRAM: &str = "tap_ingress";

/// A filter with priority 1 runs before any other that `tc` or a network plugin adds with theirs
/// left to the kernel (49152 and up).
const PRIORITY: u16 = 1;

/// A program could not be attached or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The network namespace could not be entered.
    #[error("cannot attach to {interface}")]
    Netns {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// The network namespace has no such interface.
    #[error("the network namespace has no interface {interface}")]
    Interface {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// The program's pin is missing or unreadable.
    #[error("cannot open the pinned BPF program {}", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The qdisc that carries the program on kernels before 6.6 could not be added or removed.
    #[error("cannot change the clsact qdisc of {interface}")]
    Qdisc {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the program.
    #[error("cannot attach to the ingress of {interface}")]
    Attach {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The kernel refused the program for the network namespace.
    #[error("cannot attach {} to the network namespace", crate::STEER_PROGRAM)]
    Steer {
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The kernel does not tell what is attached.
    #[error("cannot list what is attached to the ingress of {interface}")]
    Query {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The kernel refused to take the program off.
    #[error("cannot detach from the ingress of {interface}")]
    Detach {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: ProgramError,
    },
}

/// How a program hangs on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// As a link of its own (Linux 6.6 and newer), gone with the descriptor, so also with a killed
    /// process.
    Tcx,
    /// As a filter of the `clsact` qdisc, which stays until it is taken off or the namespace ends.
    Clsact,
}

/// An attached program; detaches it when dropped. [`detach`](Self::detach) tells of failures.
pub struct Link {
    interface: String,
    kind: Option<Kind>,
}

enum Kind {
    Tcx(SchedClassifierLink),
    Clsact {
        link: SchedClassifierLink,
        netns: OwnedFd,
        ifindex: u32,
        own_qdisc: bool,
    },
}

impl Link {
    /// How it is attached.
    #[must_use]
    pub fn method(&self) -> Method {
        match self.kind {
            Some(Kind::Clsact { .. }) => Method::Clsact,
            _ => Method::Tcx,
        }
    }

    /// Takes the program off, and the qdisc if attaching had added it.
    pub fn detach(mut self) -> Result<(), AttachError> {
        self.take_off()
    }

    fn take_off(&mut self) -> Result<(), AttachError> {
        match self.kind.take() {
            None => Ok(()),
            Some(Kind::Tcx(link)) => {
                drop(link);
                Ok(())
            }
            Some(Kind::Clsact {
                link,
                netns,
                ifindex,
                own_qdisc,
            }) => {
                let interface = self.interface.clone();
                netns::enter(netns.as_fd(), || {
                    take_off_filter(link, &interface)?;
                    if own_qdisc {
                        netlink::delete_clsact(ifindex)
                            .map_err(|source| AttachError::Qdisc { interface, source })?;
                    }
                    Ok(())
                })
                .map_err(|source| AttachError::Netns {
                    interface: self.interface.clone(),
                    source,
                })?
            }
        }
    }
}

/// Must run in the filter's network namespace: aya opens the netlink socket in the caller's.
fn take_off_filter(link: SchedClassifierLink, interface: &str) -> Result<(), AttachError> {
    use aya::programs::links::Link as _;

    link.detach().map_err(|source| AttachError::Detach {
        interface: interface.to_owned(),
        source,
    })
}

impl Drop for Link {
    fn drop(&mut self) {
        // Whoever wants to hear of a failure has called `detach`; what stays ends with the pod's
        // network namespace.
        let _ = self.take_off();
    }
}

/// Attaches the program `program`, pinned in `pins`, to the ingress of `interface` in `netns`, in
/// front of other programs. Without a `method` the best that the kernel has is taken.
pub fn attach(
    pins: &Path,
    program: &str,
    netns: BorrowedFd<'_>,
    interface: &str,
    method: Option<Method>,
) -> Result<Link, AttachError> {
    let attached = netns::enter(netns, || {
        let path = pins.join(program);
        let mut program = SchedClassifier::from_pin(&path)
            .map_err(|source| AttachError::Open { path, source })?;
        match method {
            Some(Method::Tcx) => attach_tcx(&mut program, interface),
            Some(Method::Clsact) => attach_clsact(&mut program, netns, interface),
            None => match attach_tcx(&mut program, interface) {
                Err(AttachError::Attach { source, .. }) if not_supported(&source) => {
                    attach_clsact(&mut program, netns, interface)
                }
                result => result,
            },
        }
    });
    match attached {
        Ok(kind) => Ok(Link {
            interface: interface.to_owned(),
            kind: Some(kind?),
        }),
        Err(source) => Err(AttachError::Netns {
            interface: interface.to_owned(),
            source,
        }),
    }
}

/// Whether a link of a program called `program` is on the ingress of `interface` in `netns`. Filters
/// of `clsact` are not looked at: unlike links they outlive their process and tell nothing of it.
pub fn is_attached(
    netns: BorrowedFd<'_>,
    interface: &str,
    program: &str,
) -> Result<bool, AttachError> {
    netns::enter(netns, || {
        match SchedClassifier::query_tcx(interface, TcAttachType::Ingress) {
            Ok((_, programs)) => Ok(programs
                .iter()
                .any(|info| info.name_as_str() == Some(program))),
            Err(error) if not_supported(&error) => Ok(false),
            Err(source) => Err(AttachError::Query {
                interface: interface.to_owned(),
                source,
            }),
        }
    })
    .map_err(|source| AttachError::Netns {
        interface: interface.to_owned(),
        source,
    })?
}

/// Takes filters of a program called `program` off `interface` in `netns`: those that a killed
/// process has left, for unlike links they do not go with it. The `clsact` qdisc stays; whose it is
/// cannot be told, and without filters it does nothing. Touches no links.
pub fn detach_left_over(
    netns: BorrowedFd<'_>,
    interface: &str,
    program: &str,
) -> Result<(), AttachError> {
    netns::enter(netns, || {
        match qdisc_detach_program(interface, TcAttachType::Ingress, program) {
            Ok(()) => Ok(()),
            Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(AttachError::Detach {
                interface: interface.to_owned(),
                source: source.into(),
            }),
        }
    })
    .map_err(|source| AttachError::Netns {
        interface: interface.to_owned(),
        source,
    })?
}

/// `EINVAL`: the kernel does not know the attach type. The others: it was built without it.
fn not_supported(error: &ProgramError) -> bool {
    const ENOTSUPP: i32 = 524;
    match error {
        ProgramError::SyscallError(error) => matches!(
            error.io_error.raw_os_error(),
            Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)
        ),
        _ => false,
    }
}

fn attach_tcx(program: &mut SchedClassifier, interface: &str) -> Result<Kind, AttachError> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    attach_with(program, interface, options).map(Kind::Tcx)
}

fn attach_clsact(
    program: &mut SchedClassifier,
    netns: BorrowedFd<'_>,
    interface: &str,
) -> Result<Kind, AttachError> {
    let qdisc_error = |source| AttachError::Qdisc {
        interface: interface.to_owned(),
        source,
    };
    let ifindex = if_nametoindex(interface).map_err(|source| AttachError::Interface {
        interface: interface.to_owned(),
        source,
    })?;
    let netns = netns.try_clone_to_owned().map_err(qdisc_error)?;
    let own_qdisc = netlink::add_clsact(ifindex).map_err(qdisc_error)?;
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        ..NlOptions::default()
    });
    match attach_with(program, interface, options) {
        Ok(link) => Ok(Kind::Clsact {
            link,
            netns,
            ifindex,
            own_qdisc,
        }),
        Err(error) => {
            if own_qdisc {
                netlink::delete_clsact(ifindex).map_err(qdisc_error)?;
            }
            Err(error)
        }
    }
}

fn attach_with(
    program: &mut SchedClassifier,
    interface: &str,
    options: TcAttachOptions,
) -> Result<SchedClassifierLink, AttachError> {
    program
        .attach_with_options(interface, TcAttachType::Ingress, options)
        .and_then(|id| program.take_link(id))
        .map_err(|source| AttachError::Attach {
            interface: interface.to_owned(),
            source,
        })
}
