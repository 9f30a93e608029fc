//! `cargo xtask image` and `cargo xtask bundle`: what is given to others, as OCI archives and a tar file.
//!
//! No container engine takes part. What is made depends on the programs, the CRIU bundle and the sources only: the same
//! make the same digests.

mod crates;
mod notices;
mod pack;
mod runtime;
mod sbom;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::HumanBytes;

use crate::arch::Arch;
use crate::dist;
use crate::setup::oci::{self, Packed};
use crate::setup::{self, Cache, Criu, files};
use pack::{Kind, Parts};
use source::Source;

/// Where images are fetched from unless told otherwise.
const REGISTRY: &str = "ghcr.io/podmotion";

/// Arguments of `cargo xtask image`.
#[derive(clap::Args)]
pub struct ImageArgs {
    /// Architecture to make images for; both unless told otherwise.
    #[arg(long)]
    arch: Vec<Arch>,
    /// Folder to write to, `target/images` unless told otherwise.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Take the programs from this folder instead of compiling them; asks for one `--arch`.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// First part of the images' names.
    #[arg(long, value_name = "NAME", default_value = REGISTRY)]
    registry: String,
}

/// Arguments of `cargo xtask bundle`.
#[derive(clap::Args)]
pub struct BundleArgs {
    /// Architecture to make a bundle for; both unless told otherwise.
    #[arg(long)]
    arch: Vec<Arch>,
    /// Folder to write to, `target/bundles` unless told otherwise.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Runs `cargo xtask image`.
///
/// # Errors
/// When something does not compile, a part is missing, or an image is larger than it may be.
pub fn run(args: &ImageArgs) -> Result<()> {
    let archs = architectures(&args.arch);
    ensure!(
        args.programs.is_none() || archs.len() == 1,
        "the programs of a folder are for one architecture: say which with --arch"
    );
    let mut programs = Vec::new();
    for arch in archs {
        programs.push((
            arch,
            match &args.programs {
                Some(dir) => dir.clone(),
                None => dist::build(arch)?,
            },
        ));
    }
    let output = output(args.output.as_deref(), "images")?;
    make(&programs, &output, &args.registry)
}

/// Makes the images of this machine's architecture in `target/images`, from programs that are there. Returns the folder.
///
/// # Errors
/// When a part is missing, or an image is larger than it may be.
pub fn of_host(programs: &Path) -> Result<PathBuf> {
    let output = output(None, "images")?;
    make(&[(Arch::host()?, programs.to_owned())], &output, REGISTRY)?;
    Ok(output)
}

/// Runs `cargo xtask bundle`.
///
/// # Errors
/// When the bundle cannot be made.
pub fn bundle(args: &BundleArgs) -> Result<()> {
    let output = output(args.output.as_deref(), "bundles")?;
    let cache = Cache::from_env()?;
    let time = Source::of(&crate::project_root())?.time;
    for arch in architectures(&args.arch) {
        let dir = brought(&cache, arch)?;
        let version = setup::read_origins(&dir)?
            .into_iter()
            .find(|origin| origin.name == "criu")
            .context("the bundle does not say what CRIU it has")?
            .version;
        let path = output.join(format!("podmotion-criu-{version}-{}.tar.gz", arch.name()));
        let content = pack::with_folders(pack::bundle(&dir, arch, "criu")?);
        oci::write_gzip_layer(&path, &content, time)?;
        println!("{} {}", HumanBytes(size(&path)?), path.display());
    }
    Ok(())
}

/// Writes every image of each of `programs` to `output`, and for more than one architecture an index of them.
fn make(programs: &[(Arch, PathBuf)], output: &Path, registry: &str) -> Result<()> {
    let source = Source::of(&crate::project_root())?;
    let version = env!("CARGO_PKG_VERSION");
    let work = output.join("layers.partial");
    pack::empty(&work)?;
    for kind in Kind::ALL {
        let name = format!("{registry}/{}:{version}", kind.name());
        let stem = format!("podmotion-{}-{version}", kind.name());
        let mut made: Vec<Packed> = Vec::new();
        let mut labels = None;
        for (arch, programs) in programs {
            let criu = brought(&Cache::from_env()?, *arch)?;
            let (sbom, notices) = describe(kind, *arch, &criu, &source)?;
            let parts = Parts {
                kind,
                arch: *arch,
                version,
                source: &source,
                programs,
                criu: &criu,
                sbom: &sbom,
                notices: &notices,
            };
            let packed = parts.pack(&name, &work)?;
            let stem = output.join(format!("{stem}-{}", arch.name()));
            files::write(&files::with_suffix(&stem, ".spdx.json"), &sbom)?;
            let archive = files::with_suffix(&stem, ".tar");
            packed.write(&archive, &name)?;
            report(&archive, packed.digest(), packed.layers_size());
            labels = Some(parts.labels()?);
            made.push(packed);
        }
        if let Some(labels) = labels.filter(|_| made.len() > 1) {
            let archive = output.join(format!("{stem}.tar"));
            let images: Vec<&Packed> = made.iter().collect();
            let digest = oci::write_index(&archive, &name, &labels, &images)?;
            report(
                &archive,
                &digest,
                made.iter().map(Packed::layers_size).sum(),
            );
        }
    }
    files::remove(&work)
}

/// The SBOM of an image and the licence texts that go with it.
fn describe(kind: Kind, arch: Arch, criu: &Path, source: &Source) -> Result<(Vec<u8>, String)> {
    let packages: Vec<&str> = kind
        .programs()
        .into_iter()
        .map(|(package, _)| package)
        .collect();
    let crates = crates::linked(arch, &packages)?;
    let linked = runtime::linked(arch)?;
    let origins = setup::read_origins(criu)?;
    let sbom = sbom::document(&sbom::Contents {
        image: &format!("podmotion-{}", kind.name()),
        version: env!("CARGO_PKG_VERSION"),
        arch,
        created: source.time,
        crates: &crates,
        rust: &runtime::rust_version()?,
        linked: &linked,
        bundle: (kind == Kind::Installer).then_some((origins.as_slice(), pack::CRIU)),
    })?;
    Ok((sbom, notices::collect(&crates, &linked)?))
}

/// The CRIU bundle for `arch`, brought if it is not there.
fn brought(cache: &Cache, arch: Arch) -> Result<PathBuf> {
    setup::ensure(&[Criu::item(arch)])?;
    Ok(Criu::dir(cache, arch))
}

fn architectures(asked: &[Arch]) -> Vec<Arch> {
    let mut archs = if asked.is_empty() {
        Arch::ALL.to_vec()
    } else {
        asked.to_vec()
    };
    archs.sort();
    archs.dedup();
    archs
}

fn output(asked: Option<&Path>, default: &str) -> Result<PathBuf> {
    let output = match asked {
        Some(dir) => dir.to_owned(),
        None => dist::target_dir()?.join(default),
    };
    files::make_dir(&output)?;
    Ok(output)
}

fn report(archive: &Path, digest: &str, size: u64) {
    println!("{} {digest} {}", HumanBytes(size), archive.display());
}

fn size(path: &Path) -> Result<u64> {
    path.metadata()
        .map(|meta| meta.len())
        .with_context(|| format!("cannot look at {}", path.display()))
}
