//! What containerd's configuration is to say, and in which file.
//!
//! | containerd | file | why there |
//! |---|---|---|
//! | 1.6, 1.7 | the one that has the CRI plugin's section, or the main one | a section of an imported file replaces the whole section of the same plugin |
//! | 2 | a file of its own that the main one imports, of the main one's version | sections are merged, but not those of different versions |
//! | of k3s and rke2 | the template that they make the main file from | they write the file anew whenever they start |
//!
//! All of it is pure: texts go in, texts come out.

pub mod block;
#[cfg(test)]
mod golden;
pub mod opt;
pub mod place;
pub mod runtime;
pub mod template;
pub mod tree;

/// What the texts cannot be used for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A file is not TOML.
    #[error("{file}: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// The parser's explanation.
        message: String,
    },
    /// A version without runtimes of this kind.
    #[error(
        "{file}: version = {version} is not valid: expected {expected}; `containerd config migrate` makes one"
    )]
    Version {
        /// The file.
        file: String,
        /// What it says, 1 if it says nothing.
        version: i64,
        /// What it may be.
        expected: &'static str,
    },
    /// An import is not a pattern of files.
    #[error("{file}: imports = {pattern:?} is not valid: {message}")]
    Import {
        /// The file.
        file: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// Kubernetes cannot use this containerd at all.
    #[error("{file}: disabled_plugins has {plugin:?}: Kubernetes and Podmotion need it")]
    Disabled {
        /// The file.
        file: String,
        /// The plugin.
        plugin: String,
    },
    /// Somebody else's runtime has our name.
    #[error("{file} has a runtime {name:?} that this program has not written: remove it")]
    Taken {
        /// The file.
        file: String,
        /// The runtime.
        name: &'static str,
    },
    /// Nothing can be added to a file.
    #[error("{file}: a runtime cannot be added to it: {message}")]
    Closed {
        /// The file.
        file: String,
        /// Why.
        message: String,
    },
}
