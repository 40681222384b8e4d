//! The key file of the cluster: random bytes that every node has and nobody else may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;

/// Bytes that `replctl init` writes.
pub const KEY_BYTES: usize = 32;
const KEY_BYTES_MAX: u64 = 4096;

/// The secret of a cluster. Never shown: it has no `Debug`.
#[derive(Clone)]
pub struct ClusterKey(Vec<u8>);

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// There is no such file.
    #[error(
        "the key file {0} does not exist; make it once with `replctl init` and copy it to every \
         node over a safe way (scp)"
    )]
    Missing(PathBuf),
    /// It cannot be read or written.
    #[error("cannot {verb} the key file {path}: {source}")]
    Io {
        /// `read` or `write`.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read it.
    #[error(
        "the key file {path} has mode {mode:04o}, so that others can read or change it; run \
         `chmod 0600 {path}`"
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its length is wrong.
    #[error("the key file {path} has {bytes} bytes; a key has {KEY_BYTES} to {KEY_BYTES_MAX}")]
    Length {
        /// Which file.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
    },
    /// A key that exists is never replaced.
    #[error(
        "the key file {0} exists already and is kept: nodes with another key refuse each other; \
         to change it stop all nodes, remove it and run `replctl init` again"
    )]
    Exists(PathBuf),
}

impl ClusterKey {
    /// A key from bytes; for tests and for callers that keep it elsewhere.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Reads a key file, which only its owner may be able to read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { verb: "read", path: path.to_owned(), source };
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => KeyError::Missing(path.to_owned()),
            _ => io(error),
        })?;
        let metadata = file.metadata().map_err(io)?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let bytes = metadata.len();
        if !(KEY_BYTES as u64..=KEY_BYTES_MAX).contains(&bytes) {
            return Err(KeyError::Length { path: path.to_owned(), bytes });
        }
        let mut key = Vec::with_capacity(bytes as usize);
        file.take(KEY_BYTES_MAX).read_to_end(&mut key).map_err(io)?;
        Ok(Self(key))
    }

    /// Makes a new key file with mode 0600, durably; refuses to replace one.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { verb: "write", path: path.to_owned(), source };
        let mut key = vec![0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|error| io(io::Error::other(error.to_string())))?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io)?;
        }
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
            _ => io(error),
        })?;
        file.write_all(&key).and_then(|()| file.sync_all()).map_err(io)?;
        if let Some(dir) = path.parent() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        }
        Ok(Self(key))
    }

    /// HMAC-SHA256 over the parts, each preceded by its length, so that no two lists of parts
    /// give the same input.
    pub fn authenticate(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// The id of a resource: the same on every node that has the key, without asking anybody.
    /// `life` tells a resource from an earlier one of the same name; empty for the first.
    pub fn resource_id(&self, cluster: &str, resource: &str, life: &str) -> u128 {
        let parts =
            [b"resource id".as_slice(), cluster.as_bytes(), resource.as_bytes(), life.as_bytes()];
        let mac = self.authenticate(&parts);
        u128::from_le_bytes(mac[..16].try_into().expect("16 of 32 bytes"))
    }
}

/// Whether two codes are equal, in a time that does not depend on where they differ.
pub fn equal_in_constant_time(left: &[u8; 32], right: &[u8; 32]) -> bool {
    left.iter().zip(right).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fresh_dir(name: &str) -> PathBuf {
        let dir =
            std::env::temp_dir().join(format!("replicator-key-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_new_key_is_private_and_is_never_replaced() {
        let dir = fresh_dir("new");
        let path = dir.join("key");
        let made = ClusterKey::create(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert!(matches!(ClusterKey::create(&path), Err(KeyError::Exists(_))));
        let loaded = ClusterKey::load(&path).unwrap();
        assert_eq!(made.authenticate(&[b"x"]), loaded.authenticate(&[b"x"]));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_cure() {
        let dir = fresh_dir("open");
        let path = dir.join("key");
        ClusterKey::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let text = ClusterKey::load(&path).err().unwrap().to_string();
        assert!(text.contains("has mode 0644"), "{text}");
        assert!(text.contains("chmod 0600"), "{text}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_short_key_and_a_missing_key_are_refused() {
        let dir = fresh_dir("short");
        let path = dir.join("key");
        assert!(matches!(ClusterKey::load(&path), Err(KeyError::Missing(_))));
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(&[7; 31]).unwrap();
        assert!(matches!(ClusterKey::load(&path), Err(KeyError::Length { bytes: 31, .. })));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_hmac_is_the_one_of_rfc_4231() {
        // Test case 2 of RFC 4231, computed without the length prefixes.
        let mut mac = Hmac::<Sha256>::new_from_slice(b"Jefe").unwrap();
        mac.update(b"what do ya want for nothing?");
        let code: [u8; 32] = mac.finalize().into_bytes().into();
        assert_eq!(code[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        assert_ne!(key.authenticate(&[b"ab", b"c"]), key.authenticate(&[b"a", b"bc"]));
        assert_ne!(key.resource_id("c", "r", ""), key.resource_id("c", "r", "2"));
    }
}
