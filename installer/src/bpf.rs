//! The subcommand `bpf`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use podmotion_bpf::DEFAULT_PIN_DIR;
use podmotion_bpf::loader::{Outcome, load_and_pin, unpin};

/// Where a BPF file system is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";

#[derive(Args)]
pub struct Arguments {
    /// Where to pin; must be on a BPF file system
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,
    /// Mount a BPF file system on /sys/fs/bpf if there is none
    #[arg(long, conflicts_with = "remove")]
    mount: bool,
    /// Remove the pins instead; programs attached to pods stay until their pods end
    #[arg(long)]
    remove: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let dir = &arguments.pin_dir;
    if arguments.remove {
        return remove(dir);
    }
    if arguments.mount {
        mount_bpffs()?;
    }
    let loaded = load_and_pin(dir)?;
    for (name, outcome) in loaded.pins {
        let outcome = match outcome {
            Outcome::Created => "pinned",
            Outcome::Replaced => "replaced",
            Outcome::Unchanged => "unchanged",
        };
        println!("{}: {outcome}", dir.join(name).display());
    }
    if let Some(reason) = loaded.without_probes {
        let reason = anyhow::Error::new(reason);
        println!("probes are not told from other traffic: {reason:#}");
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    let removed = unpin(dir)?;
    for name in &removed {
        println!("{}: removed", dir.join(name).display());
    }
    if removed.is_empty() {
        println!("{}: nothing to remove", dir.display());
    }
    Ok(())
}

fn mount_bpffs() -> Result<()> {
    let mounted = statfs(BPFFS).with_context(|| format!("cannot look at {BPFFS}"))?;
    if mounted.filesystem_type() == BPF_FS_MAGIC {
        println!("{BPFFS}: mounted already");
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=700"))
        .with_context(|| format!("cannot mount a BPF file system on {BPFFS}"))?;
    println!("{BPFFS}: mounted");
    Ok(())
}
