//! Test images and how they get into containerd.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::api::{Api, content, images, rpc};
use crate::machine::run;
use crate::tools::Tools;

/// One of the images that `cargo xtask setup` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Image {
    /// Python with our applications, and a shell.
    Apps,
    /// A shell and its commands, small.
    Busybox,
    /// The pause program of a pod sandbox.
    Pause,
    /// A Debian with the servers that people run, and our applications. Hundreds of megabytes to unpack.
    Software,
}

impl Image {
    /// Its name in containerd.
    pub fn reference(self) -> &'static str {
        match self {
            Self::Apps => "podmotion.test/apps:1",
            Self::Busybox => "podmotion.test/busybox:1",
            Self::Pause => "podmotion.test/pause:1",
            Self::Software => "podmotion.test/software:1",
        }
    }

    fn archive(self, tools: &Tools) -> Result<PathBuf> {
        tools.cached(match self {
            Self::Apps => "images/apps.tar",
            Self::Busybox => "images/busybox.tar",
            Self::Pause => "images/pause.tar",
            Self::Software => "images/software.tar",
        })
    }

    /// Loads and unpacks it.
    pub(crate) fn import(self, tools: &Tools, socket: &Path, namespace: &str) -> Result<()> {
        run(Command::new(tools.ctr()?)
            .arg("--address")
            .arg(socket)
            .args(["--namespace", namespace, "images", "import"])
            .args(["--snapshotter", "overlayfs"])
            .arg(self.archive(tools)?))
        .with_context(|| format!("import image {}", self.reference()))?;
        Ok(())
    }

    /// The key of the snapshot that a container of this image starts from. The image must be there.
    pub(crate) fn chain_id(self, api: &Api) -> Result<String> {
        let answer = rpc!(
            api,
            images::images_client::ImagesClient<tonic::transport::Channel>,
            get,
            images::GetImageRequest {
                name: self.reference().to_owned()
            }
        )?;
        let target = answer.image.and_then(|image| image.target);
        let mut digest = target.context("image without a target")?.digest;
        // An index leads to a manifest, a manifest to a configuration, and that has the layers.
        for _ in 0..3 {
            let blob: serde_json::Value = serde_json::from_slice(&read(api, &digest)?)
                .with_context(|| format!("parse {digest}"))?;
            if let Some(layers) = blob["rootfs"]["diff_ids"].as_array() {
                return chain(layers.iter().filter_map(|layer| layer.as_str()));
            }
            let next = [&blob["config"]["digest"], &blob["manifests"][0]["digest"]];
            digest = next
                .iter()
                .find_map(|value| value.as_str())
                .with_context(|| format!("{digest} leads nowhere"))?
                .to_owned();
        }
        bail!("{}: no configuration found", self.reference())
    }
}

/// The image specification's ChainID: a layer's is the hash of its parent's and its own digest.
fn chain<'a>(layers: impl Iterator<Item = &'a str>) -> Result<String> {
    layers
        .fold(None, |parent: Option<String>, layer| {
            Some(match parent {
                None => layer.to_owned(),
                Some(parent) => {
                    let hash = Sha256::digest(format!("{parent} {layer}"));
                    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                    format!("sha256:{hex}")
                }
            })
        })
        .context("image without layers")
}

fn read(api: &Api, digest: &str) -> Result<Vec<u8>> {
    let mut stream = rpc!(
        api,
        content::content_client::ContentClient<tonic::transport::Channel>,
        read,
        content::ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0
        }
    )?;
    crate::api::runtime().block_on(async {
        let mut bytes = Vec::new();
        while let Some(part) = stream
            .message()
            .await
            .with_context(|| format!("read {digest}"))?
        {
            bytes.extend_from_slice(&part.data);
        }
        Ok(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[test]
    fn chain_of_one_layer_is_the_layer() {
        assert_eq!(chain(["sha256:aa"].into_iter()).unwrap(), "sha256:aa");
    }

    #[test]
    fn chain_of_two_layers_hashes_both() {
        // printf 'sha256:aa sha256:bb' | sha256sum
        assert_eq!(
            chain(["sha256:aa", "sha256:bb"].into_iter()).unwrap(),
            "sha256:b68ad689d6d1ec110ea1c13617437ad6f3766d4b3b309f6a603a222e07a0164f"
        );
    }
}
