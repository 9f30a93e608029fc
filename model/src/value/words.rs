//! Values that are one of a few words.

use super::{Setting, ValueError};

/// One of a few words, with the words as the only list of them.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $accepted:literal { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// The word that stands for it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Setting for $name {
            const ACCEPTED: &'static str = $accepted;

            fn parse(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ValueError::Word { text: text.to_owned() }),
                }
            }

            fn render(&self) -> String {
                self.as_str().to_owned()
            }
        }
    };
}

words! {
    /// What a TERM on a sleeping container does.
    TerminateAsleep, "wake or discard" {
        /// The container is woken and the signal delivered.
        Wake = "wake",
        /// The checkpoint is thrown away and the container is gone.
        Discard = "discard",
    }
}

words! {
    /// What becomes of established TCP connections on a change of node.
    NodeChangeTcp, "keep or close" {
        /// They are restored.
        Keep = "keep",
        /// They are closed.
        Close = "close",
    }
}

words! {
    /// What follows when a container cannot be restored, not even without lazy pages.
    OnRestoreFailure, "exit or cold-start" {
        /// The container exits with an error.
        Exit = "exit",
        /// The container's process is started anew, marked as such everywhere.
        ColdStart = "cold-start",
    }
}

words! {
    /// What becomes of images of memory some time after they were written.
    Compression, "lz4 or none" {
        /// They are compressed.
        Lz4 = "lz4",
        /// They stay as they are.
        None = "none",
    }
}

words! {
    /// How much the shim logs.
    LogLevel, "error, warn, info, debug or trace" {
        /// Failures only.
        Error = "error",
        /// And what looks wrong.
        Warn = "warn",
        /// And each sleep and wake.
        Info = "info",
        /// And each step of them.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}
