//! Which file gets what.

use std::path::PathBuf;

use toml_edit::{Array, DocumentMut, Item, RawString, Value};

use super::runtime::{CRI_V2, CRI_V3, NAME, Runtime, runc_section};
use super::tree::{File, Tree};
use super::{ConfigError, block};

/// Where our file is if the main one does not import another folder already.
pub const DROP_IN: &str = "/etc/containerd/conf.d/podmotion.toml";

/// A release line of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// 1.6 and 1.7.
    One,
    /// 2.0 and later.
    Two,
}

impl Line {
    /// Of what it says about its version, such as `v2.1.9` or `1.7.24~ds1`; `None` for others.
    pub fn of(version: &str) -> Option<Self> {
        let mut numbers = version.trim_start_matches('v').split('.');
        let major: u32 = numbers.next()?.parse().ok()?;
        let minor: u32 = numbers.next()?.parse().ok()?;
        match (major, minor) {
            (1, 6..) => Some(Self::One),
            (2.., _) => Some(Self::Two),
            _ => None,
        }
    }
}

/// A file and its new text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name on the node.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

/// What to write so that containerd has `runtime`: in this order, so that what can be read at any
/// moment is valid. Files that are as they are to be are not among it.
///
/// # Errors
/// When the configuration is none that anything can be added to.
pub fn decide(tree: &Tree, line: Line, runtime: &Runtime) -> Result<Vec<Change>, ConfigError> {
    for file in &tree.files {
        if let Some(plugin) = file.disabled_cri() {
            let file = file.name();
            return Err(ConfigError::Disabled { file, plugin });
        }
        if file.has_foreign_runtime() {
            let file = file.name();
            return Err(ConfigError::Taken { file, name: NAME });
        }
    }
    let mut changes = match line {
        Line::One => vec![in_their_file(tree, runtime)?],
        Line::Two => in_our_file(tree, runtime)?,
    };
    changes.retain(|change| {
        let old = tree.files.iter().find(|file| file.path == change.path);
        old.and_then(|file| file.text.as_ref()) != Some(&change.text)
    });
    for change in &changes {
        change
            .text
            .parse::<DocumentMut>()
            .map_err(|error| ConfigError::Closed {
                file: change.path.display().to_string(),
                message: error.message().to_owned(),
            })?;
    }
    Ok(changes)
}

/// The last file with the plugin's section has the only one that counts.
fn in_their_file(tree: &Tree, runtime: &Runtime) -> Result<Change, ConfigError> {
    let owner = tree.files.iter().rev().find(|file| {
        let text = block::cut(file.text.as_deref().unwrap_or_default());
        file.has_plugin(CRI_V2) && text.contains(CRI_V2)
    });
    let owner = owner.unwrap_or(tree.main());
    let text = with_version(owner, 2, "2")?;
    // What else our lines have brought is not theirs.
    let theirs = block::cut(&text);
    let has_others = theirs
        .parse::<toml::Table>()
        .ok()
        .and_then(|table| runtimes_of(&table, CRI_V2))
        .is_some_and(|runtimes| !runtimes.is_empty());
    let mut ours = String::new();
    if !has_others {
        ours += &runc_section(CRI_V2);
    }
    ours += &runtime.section(CRI_V2);
    Ok(Change {
        path: owner.path.clone(),
        text: block::put(&theirs, &ours),
    })
}

fn runtimes_of(table: &toml::Table, plugin: &str) -> Option<toml::Table> {
    let path = ["plugins", plugin, "containerd", "runtimes"];
    let found = path
        .iter()
        .try_fold(table, |table, key| table.get(*key)?.as_table());
    found.cloned()
}

fn in_our_file(tree: &Tree, runtime: &Runtime) -> Result<Vec<Change>, ConfigError> {
    let main = tree.main();
    let text = with_version(main, 3, "2 or 3")?;
    let version = main.version().unwrap_or(3);
    // A file of version 2 may call it by either name, and only one of them counts then.
    let path = drop_in(tree)?;
    let others = || tree.files.iter().filter(|file| file.path != path);
    let named = |plugin| others().any(|file| file.has_plugin(plugin));
    let plugin = if version == 3 || named(CRI_V3) {
        CRI_V3
    } else {
        CRI_V2
    };
    let ours = format!("version = {version}\n\n{}", runtime.section(plugin));
    let mut changes = vec![Change {
        path: path.clone(),
        text: block::put("", &ours),
    }];
    let text = match tree.imports(&path)? {
        true => text,
        false => import(main, &text)?,
    };
    changes.push(Change {
        path: main.path.clone(),
        text,
    });
    Ok(changes)
}

/// Beside other files that the main one imports, if a pattern of it fits; else where they are by convention.
fn drop_in(tree: &Tree) -> Result<PathBuf, ConfigError> {
    let beside = tree.files.iter().skip(1).filter_map(|file| {
        let path = file.path.with_file_name("podmotion.toml");
        match tree.imports(&path) {
            Ok(true) => Some(Ok(path)),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    });
    let conventional = PathBuf::from(DROP_IN);
    if tree.imports(&conventional)? {
        return Ok(conventional);
    }
    beside.into_iter().next().unwrap_or(Ok(conventional))
}

/// The main file's text with our file among its imports. By a pattern that only ours fits: a name of
/// one that is missing would keep containerd from starting.
fn import(main: &File, text: &str) -> Result<String, ConfigError> {
    let pattern = DROP_IN.replace(".toml", "*.toml");
    let closed = |message: &str| ConfigError::Closed {
        file: main.name(),
        message: message.to_owned(),
    };
    let mut document: DocumentMut = text.parse().map_err(|_| closed("it is not TOML"))?;
    let imports = document
        .entry("imports")
        .or_insert(Item::Value(Array::new().into()));
    let imports = imports
        .as_array_mut()
        .ok_or_else(|| closed("imports is not a list"))?;
    append(imports, pattern);
    Ok(document.to_string())
}

/// On a line of its own, where each has one. A comment at the end of the last line stays there.
fn append(list: &mut Array, text: String) {
    let trailing = list.trailing().as_str().unwrap_or_default().to_owned();
    let last = list.iter().last().and_then(|last| last.decor().prefix());
    let last = last.and_then(RawString::as_str).unwrap_or_default();
    let (Some((before, closing)), Some((_, indent))) =
        (trailing.rsplit_once('\n'), last.rsplit_once('\n'))
    else {
        return list.push(text);
    };
    let value = Value::from(text).decorated(format!("{before}\n{indent}"), "");
    list.set_trailing(format!("\n{closing}"));
    list.push_formatted(value);
}

/// The text of a file, which may be missing or say nothing: then it gets `version`.
fn with_version(file: &File, version: i64, expected: &'static str) -> Result<String, ConfigError> {
    let text = file.text.clone().unwrap_or_default();
    match file.version() {
        None if file.is_empty() => Ok(format!("version = {version}\n{text}")),
        Some(found) if expected.contains(&found.to_string()) => Ok(text),
        found => Err(ConfigError::Version {
            file: file.name(),
            version: found.unwrap_or(1),
            expected,
        }),
    }
}

/// The text of a file without ours: `None` if nothing is left that was not ours. For files that others have
/// changed since.
pub fn without_ours(text: &str) -> Option<String> {
    let pattern = DROP_IN.replace(".toml", "*.toml");
    let own_line = format!("\"{pattern}\"");
    let rest: String = block::cut(text)
        .split_inclusive('\n')
        .filter(|line| line.trim().trim_end_matches(',') != own_line)
        .collect();
    let Ok(mut document) = rest.parse::<DocumentMut>() else {
        return Some(rest);
    };
    if let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut)
        && imports.iter().any(|one| one.as_str() == Some(&pattern))
    {
        imports.retain(|one| one.as_str() != Some(&pattern));
        if imports.is_empty() {
            document.remove("imports");
        }
        return Some(document.to_string());
    }
    (!rest.is_empty()).then_some(rest)
}
