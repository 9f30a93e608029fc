//! Writes OCI image archives: a tar of an OCI layout, as `ctr images import` takes it.
//!
//! Layers stay uncompressed: they are imported on the machine that made them, again and again.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::files;

/// Read in pieces of this size: hashing then runs at the speed of the hash.
const PIECE: usize = 1 << 20;

/// All files carry this time, so that the same content makes the same image.
const EPOCH: &str = "1970-01-01T00:00:01Z";
const EPOCH_SECONDS: u64 = 1;

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
    /// `NAME=VALUE` variables beside `PATH`.
    pub env: &'a [&'a str],
}

/// A blob that is a file.
struct Layer {
    path: PathBuf,
    digest: String,
    size: u64,
}

/// Writes an image of the tar files `layers`, lowest first, to `out`.
pub fn write_archive(out: &Path, image: &Image<'_>, layers: &[PathBuf]) -> Result<()> {
    let layers = layers
        .iter()
        .map(|path| Layer::open(path))
        .collect::<Result<Vec<_>>>()?;
    let config = serde_json::to_vec(&config(image, &layers))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{}", layer.digest),
            "size": layer.size,
        })).collect::<Vec<_>>(),
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
    // containerd takes an image's name from this annotation.
    entry["annotations"] = json!({ "io.containerd.image.name": image.name });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;

    let file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    archive.file("index.json", &index, 0o644)?;
    for blob in [&manifest, &config] {
        archive.file(&format!("blobs/sha256/{}", digest(blob)), blob, 0o644)?;
    }
    for layer in &layers {
        let content = File::open(&layer.path)
            .with_context(|| format!("cannot open {}", layer.path.display()))?;
        let name = format!("blobs/sha256/{}", layer.digest);
        archive.stream(&name, layer.size, content, 0o644)?;
    }
    archive
        .finish()
        .with_context(|| format!("cannot write {}", out.display()))
}

/// Writes the tar of a layer: `content` is (path in the image, file).
pub fn write_layer(out: &Path, content: &[(String, PathBuf)]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for (name, path) in content {
        let meta = path
            .metadata()
            .with_context(|| format!("cannot read {}", path.display()))?;
        // Readable by any user of the image, whatever the umask was here.
        let executable = meta.permissions().mode() & 0o100 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        archive.file(name, &files::read(path)?, mode)?;
    }
    archive
        .finish()
        .with_context(|| format!("cannot write {}", out.display()))
}

impl Layer {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let (digest, size) =
            digest_of(file).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            digest,
            size,
        })
    }
}

fn config(image: &Image<'_>, layers: &[Layer]) -> Value {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env: Vec<&str> = [path].iter().chain(image.env).copied().collect();
    json!({
        "created": EPOCH,
        "architecture": image.architecture,
        "os": "linux",
        "config": {
            "Env": env,
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "WorkingDir": "/",
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect::<Vec<_>>(),
        },
        "history": layers.iter().map(|_| json!({ "created": EPOCH })).collect::<Vec<_>>(),
    })
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": format!("sha256:{}", digest(content)),
        "size": content.len(),
    })
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

/// A tar whose headers depend on nothing but names, modes and content.
struct Archive<W: Write> {
    tar: tar::Builder<W>,
}

impl<W: Write> Archive<W> {
    fn new(writer: W) -> Self {
        Self {
            tar: tar::Builder::new(writer),
        }
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.stream(name, content.len() as u64, content, mode)
    }

    fn stream(&mut self, name: &str, size: u64, content: impl Read, mode: u32) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(size);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(EPOCH_SECONDS);
        let content = BufReader::with_capacity(PIECE, content);
        self.tar
            .append_data(&mut header, name, content)
            .with_context(|| format!("cannot archive {name}"))
    }

    fn finish(self) -> std::io::Result<()> {
        self.tar.into_inner()?.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn entries(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(File::open(archive).expect("open"));
        tar.entries()
            .expect("entries")
            .map(|entry| {
                let mut entry = entry.expect("entry");
                let name = entry.path().expect("path").display().to_string();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("read");
                (name, content)
            })
            .collect()
    }

    /// The content that a descriptor points to, its digest and size verified.
    fn follow(entries: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
        let wanted = descriptor["digest"]
            .as_str()
            .and_then(|digest| digest.strip_prefix("sha256:"))
            .expect("digest");
        let blob = &entries[&format!("blobs/sha256/{wanted}")];
        assert_eq!(digest(blob), wanted);
        assert_eq!(descriptor["size"], blob.len());
        blob.clone()
    }

    #[test]
    fn an_archive_leads_from_its_index_to_every_layer() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let program = dir.path().join("program");
        files::write(&program, b"content").expect("write");
        let layer = dir.path().join("layer.tar");
        write_layer(&layer, &[("bin/program".to_owned(), program)]).expect("layer");
        let out = dir.path().join("image.tar");
        let image = Image {
            name: "example.test/a:1",
            architecture: "amd64",
            entrypoint: &["/bin/program"],
            command: &["x"],
            env: &["A=b"],
        };
        write_archive(&out, &image, std::slice::from_ref(&layer)).expect("archive");

        let entries = entries(&out);
        let index: Value = serde_json::from_slice(&entries["index.json"]).expect("index");
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "example.test/a:1"
        );
        let manifest: Value = serde_json::from_slice(&follow(&entries, entry)).expect("manifest");
        let config: Value =
            serde_json::from_slice(&follow(&entries, &manifest["config"])).expect("config");
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/program");
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
        assert_eq!(
            follow(&entries, &manifest["layers"][0]),
            files::read(&layer).expect("layer")
        );
    }

    #[test]
    fn the_same_content_makes_the_same_layer() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut digests = Vec::new();
        for round in ["one", "two"] {
            let source = dir.path().join(round);
            files::write(&source, b"content").expect("write");
            let layer = dir.path().join(format!("{round}.tar"));
            write_layer(&layer, &[("file".to_owned(), source)]).expect("layer");
            digests.push(digest(&files::read(&layer).expect("read")));
        }
        assert_eq!(digests[0], digests[1]);
    }
}
