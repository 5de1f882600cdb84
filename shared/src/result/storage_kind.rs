//! The kind of object that stores a result: a ConfigMap, or a Secret with the same keys.

use crate::policy::results::StorageType;

/// Type of Secrets that store results. Users can select by it (`--field-selector type=…`), and it protects other Secrets: a
/// type is immutable, so that a Secret of another type is never overwritten, whatever its labels say.
pub const SECRET_TYPE: &str = "job-handler.io/result";

/// Kind of object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StorageKind {
    /// A ConfigMap.
    #[default]
    ConfigMap,
    /// A Secret.
    Secret,
}

impl StorageKind {
    /// Kinds that the caller may read: Secrets only where the rights on them are granted.
    pub fn readable(secrets: bool) -> &'static [Self] {
        if secrets { &[Self::ConfigMap, Self::Secret] } else { &[Self::ConfigMap] }
    }

    /// Resource in the singular, as `kubectl` prints it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    /// `kind` of its manifests.
    pub fn kind(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

impl From<StorageType> for StorageKind {
    fn from(storage: StorageType) -> Self {
        match storage {
            StorageType::ConfigMap => Self::ConfigMap,
            StorageType::Secret => Self::Secret,
        }
    }
}
