//! Debian packages of any suite, fetched by an apt that knows nothing of the machine's own packages.
//!
//! Each suite has its own folder in the cache with sources, lists, archives and an empty status file, so apt fetches a
//! package with everything it needs down to the C library and never touches the machine. Signatures are always
//! verified: the machine's keyring vouches for bookworm, and bookworm's keyring package for the later suites, whose keys an older machine may lack.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use super::{Cache, files, host};
use crate::arch::Arch;
use crate::process;

/// Used where the machine has no Debian sources of its own.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Debian's keys as the machine has them (package `debian-archive-keyring`).
const HOST_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The suite whose keyring package vouches for the others.
const BASE_SUITE: &str = "bookworm";

/// Settings of the machine's apt that hold for ours as well: how to reach the network, and how far to trust the clock.
const NETWORK_SETTINGS: &[&str] = &["Acquire::Check-", "Acquire::http::", "Acquire::https::"];

/// The suites in use, each opened once per run.
pub struct Suites {
    dir: PathBuf,
    mirror: OnceCell<String>,
    open: RefCell<BTreeMap<(String, Arch), Rc<Suite>>>,
}

/// One suite of Debian, for one architecture.
pub struct Suite {
    name: String,
    arch: Arch,
    dir: PathBuf,
}

/// A package file and what it holds.
pub struct Deb {
    /// The file.
    pub path: PathBuf,
    /// Package name.
    pub package: String,
    /// Package version.
    pub version: String,
    /// Name of the source package.
    pub source: String,
    /// Version of the source package.
    pub source_version: String,
}

impl Suites {
    pub fn new(cache: &Cache) -> Self {
        Self {
            dir: cache.path("apt"),
            mirror: OnceCell::new(),
            open: RefCell::default(),
        }
    }

    /// The suite called `name` for this machine, with fresh package lists.
    pub fn suite(&self, name: &str) -> Result<Rc<Suite>> {
        self.suite_for(name, Arch::host()?)
    }

    /// The suite called `name` for `arch`, with fresh package lists.
    pub fn suite_for(&self, name: &str, arch: Arch) -> Result<Rc<Suite>> {
        let key = (name.to_owned(), arch);
        if let Some(suite) = self.open.borrow().get(&key) {
            return Ok(Rc::clone(suite));
        }
        let keyring = self.keyring(name)?;
        let folder = if arch == Arch::host()? {
            name.to_owned()
        } else {
            format!("{name}-{}", arch.name())
        };
        let suite = Rc::new(Suite {
            name: name.to_owned(),
            arch,
            dir: self.dir.join(folder),
        });
        suite
            .configure(self.mirror()?, &keyring)
            .and_then(|()| suite.update())
            .with_context(|| format!("package lists of Debian {name} for {}", arch.name()))?;
        self.open.borrow_mut().insert(key, Rc::clone(&suite));
        Ok(suite)
    }

    /// The Debian mirror that this machine uses, or the well-known one.
    pub fn mirror(&self) -> Result<&str> {
        if self.mirror.get().is_none() {
            let found = match host_mirror()? {
                HostMirror::Known(mirror) => mirror,
                HostMirror::NotDebian => MIRROR.to_owned(),
                HostMirror::NoLists => {
                    host::update()?;
                    match host_mirror()? {
                        HostMirror::Known(mirror) => mirror,
                        _ => MIRROR.to_owned(),
                    }
                }
            };
            self.mirror.get_or_init(|| found);
        }
        Ok(self.mirror.get().map_or(MIRROR, String::as_str))
    }

    /// A keyring that vouches for the suite called `name`.
    pub fn keyring(&self, name: &str) -> Result<PathBuf> {
        if name == BASE_SUITE {
            return Ok(PathBuf::from(HOST_KEYRING));
        }
        let keyring = self.dir.join("debian-archive-keyring.gpg");
        if !keyring.exists() {
            let debs = self
                .suite(BASE_SUITE)?
                .fetch(&["debian-archive-keyring"])
                .context("Debian's keyring")?;
            let deb = debs
                .iter()
                .find(|deb| deb.package == "debian-archive-keyring")
                .context("apt brought no debian-archive-keyring")?;
            let unpacked = self.dir.join("keyring.partial");
            files::remove(&unpacked)?;
            deb.unpack(&unpacked)?;
            let inside = HOST_KEYRING.trim_start_matches('/');
            files::rename(&unpacked.join(inside), &keyring)?;
            files::remove(&unpacked)?;
        }
        Ok(keyring)
    }

    /// Removes fetched package files: they are unpacked by now.
    pub fn clean(&self) -> Result<()> {
        for suite in self.open.borrow().values() {
            files::remove(&suite.dir.join("cache"))?;
        }
        Ok(())
    }
}

impl Suite {
    fn configure(&self, mirror: &str, keyring: &Path) -> Result<()> {
        for dir in [
            "etc/none",
            "state/lists/partial",
            "cache/archives/partial",
            "cache/none/partial",
        ] {
            files::make_dir(&self.dir.join(dir))?;
        }
        let sources = format!(
            "deb [signed-by={}] {mirror} {} main\n",
            keyring.display(),
            self.name
        );
        files::write(&self.dir.join("etc/sources.list"), sources.as_bytes())?;
        files::write(&self.dir.join("state/status"), b"")?;
        let dir = self.dir.display();
        let arch = self.arch.name();
        // How to reach the network (proxies, time-outs, dates) is the machine's decision; all else is ours.
        let mut conf = host_acquire_settings()?;
        conf.push_str(&format!(
            "Dir::Etc::parts \"{dir}/etc/none\";\n\
             Dir::Etc::main \"{dir}/etc/none/apt.conf\";\n\
             Dir::Etc::sourcelist \"{dir}/etc/sources.list\";\n\
             Dir::Etc::sourceparts \"{dir}/etc/none\";\n\
             Dir::Etc::preferences \"{dir}/etc/none/preferences\";\n\
             Dir::Etc::preferencesparts \"{dir}/etc/none\";\n\
             Dir::State \"{dir}/state\";\n\
             Dir::State::status \"{dir}/state/status\";\n\
             Dir::Cache \"{dir}/cache\";\n\
             Dir::Log \"{dir}/state\";\n\
             APT::Sandbox::User \"root\";\n\
             APT::Architecture \"{arch}\";\n\
             APT::Architectures {{ \"{arch}\"; }};\n\
             APT::Install-Recommends \"false\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n"
        ));
        files::write(&self.dir.join("etc/apt.conf"), conf.as_bytes())
    }

    fn update(&self) -> Result<()> {
        process::output(self.apt_get().arg("update")).map(drop)
    }

    /// Fetches `packages` with everything they depend on.
    pub fn fetch(&self, packages: &[&str]) -> Result<Vec<Deb>> {
        let install = ["install", "-y"];
        // Asked with an empty archive: apt does not name what it has already.
        let empty = format!(
            "Dir::Cache::archives={}",
            self.dir.join("cache/none").display()
        );
        let uris = process::output(
            self.apt_get()
                .args(["-o", &empty])
                .args(install)
                .args(["-qq", "--print-uris"])
                .args(packages),
        )?;
        process::output(
            self.apt_get()
                .args(install)
                .arg("--download-only")
                .args(packages),
        )
        .with_context(|| format!("download from Debian {}", self.name))?;
        let archives = self.dir.join("cache/archives");
        let names: Vec<PathBuf> = uris
            .lines()
            .filter_map(archive_name)
            .map(|name| archives.join(name))
            .collect();
        ensure!(
            !names.is_empty(),
            "apt has nothing to fetch for {packages:?}"
        );
        names.into_iter().map(Deb::open).collect()
    }

    fn apt_get(&self) -> Command {
        let mut command = process::command("apt-get");
        command
            .env("APT_CONFIG", self.dir.join("etc/apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

impl Deb {
    fn open(path: PathBuf) -> Result<Self> {
        let format = "${Package}\n${Version}\n${source:Package}\n${source:Version}\n";
        let fields = process::output(
            process::command("dpkg-deb")
                .args(["--show", "--showformat", format])
                .arg(&path),
        )?;
        let mut fields = fields.lines().map(str::to_owned);
        let mut field = |name: &str| {
            fields
                .next()
                .filter(|value| !value.is_empty())
                .with_context(|| format!("{} has no {name}", path.display()))
        };
        Ok(Self {
            package: field("name")?,
            version: field("version")?,
            source: field("source")?,
            source_version: field("version of its source")?,
            path,
        })
    }

    /// Unpacks the package's files into `dir`, without running any of its scripts.
    pub fn unpack(&self, dir: &Path) -> Result<()> {
        files::make_dir(dir)?;
        process::output(
            process::command("dpkg-deb")
                .arg("-x")
                .arg(&self.path)
                .arg(dir),
        )
        .map(drop)
    }
}

enum HostMirror {
    Known(String),
    NotDebian,
    NoLists,
}

fn host_mirror() -> Result<HostMirror> {
    let targets = process::output(process::command("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    Ok(debian_mirror(&targets))
}

/// Reads `ORIGIN|LABEL|REPO_URI` lines. Origin and label are empty until the lists have been fetched.
fn debian_mirror(targets: &str) -> HostMirror {
    let known = targets.lines().find_map(|line| {
        let uri = line.strip_prefix("Debian|Debian|")?;
        Some(uri.trim_end_matches('/').to_owned())
    });
    match known {
        Some(mirror) => HostMirror::Known(mirror),
        None if targets.lines().all(|line| line.starts_with('|')) => HostMirror::NoLists,
        None => HostMirror::NotDebian,
    }
}

/// How this machine's apt reaches the network, a setting a line.
pub fn host_acquire_settings() -> Result<String> {
    let dump = process::output(process::command("apt-config").arg("dump"))?;
    Ok(acquire_settings(&dump))
}

/// The lines of `apt-config dump` about reaching the network, in the form that apt reads.
fn acquire_settings(dump: &str) -> String {
    dump.lines()
        .filter(|line| {
            NETWORK_SETTINGS
                .iter()
                .any(|prefix| line.starts_with(prefix))
        })
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The file name in a line of `apt-get --print-uris`: `'URI' NAME SIZE HASH`.
fn archive_name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.next().filter(|uri| uri.starts_with('\''))?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_mirror_is_found() {
        let targets = "Ubuntu|Ubuntu|http://a/ubuntu/\n\
                       Debian|Debian-Security|http://m/debian-security/\n\
                       Debian|Debian|http://m/debian/\n";
        assert!(
            matches!(debian_mirror(targets), HostMirror::Known(mirror) if mirror == "http://m/debian")
        );
    }

    #[test]
    fn lists_never_fetched_differ_from_another_distribution() {
        assert!(matches!(
            debian_mirror("||http://m/debian/\n"),
            HostMirror::NoLists
        ));
        assert!(matches!(
            debian_mirror("Ubuntu|Ubuntu|http://a/ubuntu/\n"),
            HostMirror::NotDebian
        ));
    }

    #[test]
    fn settings_keep_the_proxy_and_leave_the_index_targets() {
        let dump = "APT::Architecture \"amd64\";\n\
                    Acquire::http::Proxy \"http://p:3128\";\n\
                    Acquire::IndexTargets::deb::DEP-11::MetaKey \"x\";\n";
        assert_eq!(
            acquire_settings(dump),
            "Acquire::http::Proxy \"http://p:3128\";\n"
        );
    }

    #[test]
    fn archive_names_are_the_second_word() {
        assert_eq!(
            archive_name("'http://m/a%2b_1.deb' a_2%3a1_amd64.deb 12 SHA256:ab"),
            Some("a_2%3a1_amd64.deb")
        );
        assert_eq!(archive_name("Reading package lists..."), None);
    }
}
