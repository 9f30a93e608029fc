//! The image of a container that has slept light for a while, compressed.

use podmotion_model::value::Compression;
use podmotion_pager::{CompressError, CompressPolicy, CompressStats};

use super::*;

impl Sleeper {
    /// Its memory is out from now on.
    pub(super) fn compress_later(&mut self) {
        let checkpoint = &self.new.node.config.checkpoint;
        if checkpoint.compression == Compression::Lz4 {
            self.compress_at = Some(Instant::now() + checkpoint.compress_after);
        }
    }

    /// The time has come. A wake, or a deeper sleep, ends it.
    pub(super) fn compress(&mut self) {
        self.compress_at = None;
        let (Some(Memory::Out(moved)), Some(Depth::Light)) = (&self.memory, self.depth()) else {
            return;
        };
        let compressing = match moved.compress(CompressPolicy::default()) {
            Ok(compressing) => compressing,
            // Who wakes it will hear of it.
            Err(cause) => {
                let id = &self.new.identity.id;
                return warn!("compress the image of {id}: {}", Chain(&cause));
            }
        };
        let notify = self.notify.clone();
        tokio::task::spawn_blocking(move || {
            if let Some(result) = compressing.wait() {
                drop(notify.send(Notice::Compressed(result)));
            }
        });
    }

    /// It was not given up before.
    pub(super) fn compressed(&mut self, result: Result<CompressStats, CompressError>) {
        let id = &self.new.identity.id;
        let (said, image_bytes) = match result {
            Ok(stats) => {
                info!("the image of container {id} is compressed: {stats:?}");
                let name = Compression::Lz4.as_str().to_owned();
                (name, Some(stats.image_bytes))
            }
            Err(cause) => {
                let why = Chain(&cause).to_string();
                warn!("the image of container {id} is not compressed: {why}");
                (format!("{}: {why}", Compression::None.as_str()), None)
            }
        };
        self.update(|status| {
            let Some(last) = &mut status.last_sleep else {
                return;
            };
            // A report that was under way when it woke is about the same image.
            if last.depth == Depth::Light {
                status.compression = said;
                last.image_bytes = image_bytes.unwrap_or(last.image_bytes);
            }
        });
        footprint::tidy_soon();
    }
}
