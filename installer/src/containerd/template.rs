//! The templates that k3s and rke2 make containerd's configuration from.

use super::place::{Change, Line};
use super::runtime::{CRI_V2, CRI_V3, NAME, Runtime};
use super::{ConfigError, block};
use std::path::Path;

/// What the program itself would write.
const BASE: &str = "{{ template \"base\" . }}\n";

/// The templates' names: of version 2 and of version 3.
pub const NAMES: [&str; 2] = ["config.toml.tmpl", "config-v3.toml.tmpl"];

/// The template that is made or extended, beside the main file, and what it holds.
///
/// `read` gives the text of a file in that folder. A user's template is kept, and ours is at its end. With
/// containerd 2 a template of version 3 goes before one of version 2, which goes before none.
///
/// # Errors
/// When there is a runtime of our name in it already.
pub fn decide(
    folder: &Path,
    line: Line,
    runtime: &Runtime,
    old: impl Fn(&str) -> Option<String>,
) -> Result<Option<Change>, ConfigError> {
    const V2: (&str, &str) = (NAMES[0], CRI_V2);
    const V3: (&str, &str) = (NAMES[1], CRI_V3);
    let (name, plugin) = match line {
        Line::One => V2,
        Line::Two if old(V3.0).is_none() && theirs(old(V2.0).as_deref()) => V2,
        Line::Two => V3,
    };
    let path = folder.join(name);
    let text = old(name);
    let rest = block::cut(text.as_deref().unwrap_or(BASE));
    let taken = [format!("runtimes.{NAME}]"), format!("runtimes.\"{NAME}\"]")];
    if taken.iter().any(|section| rest.contains(section)) {
        let file = path.display().to_string();
        return Err(ConfigError::Taken { file, name: NAME });
    }
    let next = block::put(&rest, &runtime.section(plugin));
    let change = Change { path, text: next };
    Ok(Some(change).filter(|change| text.as_ref() != Some(&change.text)))
}

/// It is there, and not only ours.
fn theirs(text: Option<&str>) -> bool {
    text.is_some_and(|text| !is_ours(text))
}

/// Whether nothing is in it that a user would miss.
pub fn is_ours(text: &str) -> bool {
    let rest = block::cut(text);
    rest == BASE || rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn decided(line: Line, files: &[(&str, &str)]) -> Result<Option<Change>, ConfigError> {
        let files: BTreeMap<_, _> = files.iter().copied().collect();
        let old = |name: &str| files.get(name).map(ToString::to_string);
        decide(Path::new("/k"), line, &Runtime::default(), old)
    }

    #[test]
    fn each_line_has_a_template_and_a_users_own_is_extended() {
        for (line, files, name, plugin) in [
            (Line::One, &[][..], "config.toml.tmpl", CRI_V2),
            (Line::Two, &[], "config-v3.toml.tmpl", CRI_V3),
            (
                Line::Two,
                &[("config.toml.tmpl", "version = 2\n")],
                "config.toml.tmpl",
                CRI_V2,
            ),
            (
                Line::Two,
                &[
                    ("config.toml.tmpl", "version = 2\n"),
                    ("config-v3.toml.tmpl", "version = 3\n"),
                ],
                "config-v3.toml.tmpl",
                CRI_V3,
            ),
        ] {
            let change = decided(line, files).unwrap().unwrap();
            assert_eq!(change.path, Path::new("/k").join(name));
            let theirs = files.iter().find(|(own, _)| *own == name);
            let theirs = theirs.map_or(BASE, |(_, text)| text);
            assert!(change.text.starts_with(theirs), "{}", change.text);
            assert!(change.text.contains(plugin), "{}", change.text);
            let mut with = files.to_vec();
            with.retain(|(own, _)| *own != name);
            with.push((name, &change.text));
            assert_eq!(decided(line, &with).unwrap(), None, "{name} twice");
        }
    }

    #[test]
    fn an_upgrade_of_containerd_leaves_the_old_template_of_ours_behind() {
        let old = decided(Line::One, &[]).unwrap().unwrap();
        let new = decided(Line::Two, &[("config.toml.tmpl", &old.text)])
            .unwrap()
            .unwrap();
        assert_eq!(new.path, Path::new("/k/config-v3.toml.tmpl"));
        assert!(is_ours(&old.text));
    }

    #[test]
    fn a_runtime_of_our_name_is_not_written_over() {
        let text = format!("{BASE}[plugins.\"{CRI_V2}\".containerd.runtimes.\"podmotion\"]\n");
        let error = decided(Line::One, &[("config.toml.tmpl", &text)]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/k/config.toml.tmpl has a runtime \"podmotion\""),
            "{error}"
        );
    }
}
