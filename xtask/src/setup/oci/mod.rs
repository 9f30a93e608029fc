//! Writes OCI image archives: a tar of an OCI layout, as `ctr images import` takes it.
//!
//! What is written depends on nothing but what is asked for: the same content makes the same digests. Layers of test images
//! stay uncompressed: they are imported on the machine that made them, again and again.

mod archive;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use archive::Archive;
pub use archive::{Content, write_gzip_layer, write_layer};

/// Read in pieces of this size: hashing then runs at the speed of the hash.
const PIECE: usize = 1 << 20;

/// Time of whatever has none of its own, in seconds: some tools take 0 for none.
pub const EPOCH: u64 = 1;

/// Where programs are looked for, unless an image says otherwise.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What an image is called and what runs in it.
pub struct Image<'a> {
    /// Name with tag.
    pub name: &'a str,
    /// Architecture by its OCI name.
    pub architecture: &'a str,
    /// Arguments of the first process.
    pub entrypoint: &'a [&'a str],
    /// Further arguments, replaced by those that a user gives.
    pub command: &'a [&'a str],
    /// `NAME=VALUE` variables; without a `PATH` there is the usual one.
    pub env: &'a [&'a str],
    /// What is said about it: in its configuration as labels, in its manifest as annotations.
    pub labels: &'a BTreeMap<String, String>,
    /// Time in seconds.
    pub created: u64,
}

/// An image whose parts are all known.
pub struct Packed {
    /// Its manifest's entry in an index.
    entry: Value,
    blobs: Vec<Blob>,
    layers: u64,
}

struct Blob {
    digest: String,
    size: u64,
    content: BlobContent,
}

enum BlobContent {
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// A blob that is a tar file, compressed or not.
struct Layer {
    path: PathBuf,
    digest: String,
    /// Of the tar itself.
    diff: String,
    size: u64,
    media_type: String,
}

/// Writes an image of the tar files `layers`, lowest first, to `out`.
pub fn write_archive(out: &Path, image: &Image<'_>, layers: &[PathBuf]) -> Result<()> {
    pack(image, layers)?.write(out, image.name)
}

/// Puts an image together from the tar files `layers`, lowest first.
pub fn pack(image: &Image<'_>, layers: &[PathBuf]) -> Result<Packed> {
    let layers = layers
        .iter()
        .map(|path| Layer::open(path))
        .collect::<Result<Vec<_>>>()?;
    let config = Blob::json(&config(image, &layers)?)?;
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": layers.iter().map(|layer| json!({
            "mediaType": layer.media_type,
            "digest": format!("sha256:{}", layer.digest),
            "size": layer.size,
        })).collect::<Vec<_>>(),
    });
    if !image.labels.is_empty() {
        manifest["annotations"] = json!(image.labels);
    }
    let manifest = Blob::json(&manifest)?;
    let mut entry = manifest.descriptor(MANIFEST);
    entry["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
    let size = layers.iter().map(|layer| layer.size).sum();
    let mut blobs = vec![manifest, config];
    blobs.extend(layers.into_iter().map(|layer| Blob {
        digest: layer.digest,
        size: layer.size,
        content: BlobContent::File(layer.path),
    }));
    Ok(Packed {
        entry,
        blobs,
        layers: size,
    })
}

impl Packed {
    /// Digest of the manifest, as a registry will call the image.
    pub fn digest(&self) -> &str {
        self.entry["digest"].as_str().unwrap_or_default()
    }

    /// What a node fetches: bytes of all layers, compressed as they are.
    pub fn layers_size(&self) -> u64 {
        self.layers
    }

    /// Writes the image to `out`.
    pub fn write(&self, out: &Path, name: &str) -> Result<()> {
        write_layout(
            out,
            name,
            self.entry.clone(),
            &self.blobs.iter().collect::<Vec<_>>(),
        )
    }
}

/// Writes one image called `name` for several architectures to `out`. Returns the digest of its index.
pub fn write_index(
    out: &Path,
    name: &str,
    labels: &BTreeMap<String, String>,
    images: &[&Packed],
) -> Result<String> {
    let index = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": images.iter().map(|image| &image.entry).collect::<Vec<_>>(),
        "annotations": labels,
    }))?;
    let entry = index.descriptor(INDEX);
    let mut blobs = vec![&index];
    blobs.extend(images.iter().flat_map(|image| &image.blobs));
    write_layout(out, name, entry, &blobs)?;
    Ok(format!("sha256:{}", index.digest))
}

fn write_layout(out: &Path, name: &str, mut entry: Value, blobs: &[&Blob]) -> Result<()> {
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    entry["annotations"] = json!({
        // containerd takes an image's name from the first, tools that copy to registries its tag from the second.
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [entry],
    }))?;
    let file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut archive = Archive::new(BufWriter::new(file), EPOCH);
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    archive.file("index.json", &index, 0o644)?;
    // What two images share is there once.
    let blobs: BTreeMap<&str, &Blob> = blobs
        .iter()
        .map(|blob| (blob.digest.as_str(), *blob))
        .collect();
    for (digest, blob) in blobs {
        let path = format!("blobs/sha256/{digest}");
        match &blob.content {
            BlobContent::Bytes(content) => archive.file(&path, content, 0o644)?,
            BlobContent::File(file) => {
                let content =
                    File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
                archive.stream(&path, blob.size, content, 0o644)?;
            }
        }
    }
    archive
        .finish()
        .and_then(|mut writer| writer.flush())
        .with_context(|| format!("cannot write {}", out.display()))
}

impl Blob {
    fn json(value: &Value) -> Result<Self> {
        let content = serde_json::to_vec(value)?;
        Ok(Self {
            digest: digest(&content),
            size: content.len() as u64,
            content: BlobContent::Bytes(content),
        })
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.size,
        })
    }
}

impl Layer {
    fn open(path: &Path) -> Result<Self> {
        Self::read(path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn read(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let (digest, size) = digest_of(&file)?;
        file.rewind()?;
        let mut magic = [0; 2];
        file.read_exact(&mut magic)?;
        file.rewind()?;
        let (diff, media_type) = if magic == [0x1f, 0x8b] {
            (digest_of(GzDecoder::new(file))?.0, format!("{LAYER}+gzip"))
        } else {
            (digest.clone(), LAYER.to_owned())
        };
        Ok(Self {
            path: path.to_owned(),
            digest,
            diff,
            size,
            media_type,
        })
    }
}

fn config(image: &Image<'_>, layers: &[Layer]) -> Result<Value> {
    let created = timestamp(image.created)?;
    let mut env = image.env.to_vec();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, PATH);
    }
    let mut config = json!({
        "Env": env,
        "Entrypoint": image.entrypoint,
        "Cmd": image.command,
        "WorkingDir": "/",
    });
    if !image.labels.is_empty() {
        config["Labels"] = json!(image.labels);
    }
    Ok(json!({
        "created": created,
        "architecture": image.architecture,
        "os": "linux",
        "config": config,
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| format!("sha256:{}", layer.diff)).collect::<Vec<_>>(),
        },
        "history": layers.iter().map(|_| json!({ "created": created })).collect::<Vec<_>>(),
    }))
}

/// A time in seconds as RFC 3339 has it.
pub fn timestamp(seconds: u64) -> Result<String> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map(|time| time.to_string())
        .with_context(|| format!("{seconds} s since 1970 is no time"))
}

/// SHA-256 of `content` in hexadecimal.
pub fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// SHA-256 in hexadecimal, and size, of all that `reader` gives.
pub fn digest_of(mut reader: impl Read) -> std::io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    let mut size = 0;
    loop {
        let got = reader.read(&mut piece)?;
        if got == 0 {
            return Ok((hex(&hash.finalize()), size));
        }
        hash.update(&piece[..got]);
        size += got as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
