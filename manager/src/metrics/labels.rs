//! Label sets that borrow what they show.

use std::fmt;

use podmotion_proto::shim::v1::Container;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelEncoder, LabelSetEncoder};

/// One label.
struct Label<'a>(&'a str, &'a str);

impl EncodeLabel for Label<'_> {
    fn encode(&self, mut encoder: LabelEncoder<'_>) -> fmt::Result {
        let mut key = encoder.encode_label_key()?;
        prometheus_client::encoding::EncodeLabelKey::encode(&self.0, &mut key)?;
        let mut value = key.encode_label_value()?;
        prometheus_client::encoding::EncodeLabelValue::encode(&self.1, &mut value)?;
        value.finish()
    }
}

/// A container, and whatever else tells its series apart.
pub struct Of<'a, const N: usize>(pub &'a Container, pub [(&'a str, &'a str); N]);

impl<const N: usize> EncodeLabelSet for Of<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(container, more) = self;
        let own = [
            ("namespace", container.pod_namespace.as_str()),
            ("pod", &container.pod_name),
            ("container", &container.name),
        ];
        for (name, value) in own.into_iter().chain(more.iter().copied()) {
            Label(name, value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// Labels of something of the whole node.
pub struct Plain<'a, const N: usize>(pub [(&'a str, &'a str); N]);

impl<const N: usize> EncodeLabelSet for Plain<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (name, value) in self.0 {
            Label(name, value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}
