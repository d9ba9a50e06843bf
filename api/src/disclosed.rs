//! Secrets that an answer discloses on purpose: to the one who just proved or caused them, and to nobody else.

use envforge_domain::secret::Secret;
use serde::{Serialize, Serializer};

/// A secret on its way to its owner. Serializes; still has no `Debug`.
pub(crate) struct Disclosed(pub Secret);

impl Serialize for Disclosed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}
