//! Where the metadata of a replica end: at the end of their device, or, when that was extended
//! since, where it ended before. The ends it had are remembered in the state directory, one a line,
//! the newest last; of several places that hold metadata the newest superblock counts.

use std::path::{Path, PathBuf};
use std::{fs, io};

use replicator_core::metadata::{self, AttachError, SUPERBLOCK_BYTES, Superblock};

use crate::state_file;

/// Ends that are remembered.
const ENDS_MAX: usize = 8;

/// The file that remembers them.
#[derive(Debug, Clone)]
pub struct RememberedEnds {
    path: PathBuf,
}

impl RememberedEnds {
    /// Those of a resource on the node with this state directory.
    pub fn of(state_dir: &Path, resource: &str) -> Self {
        Self { path: state_dir.join(format!("{resource}.ends")) }
    }

    fn read(&self) -> Vec<u64> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// Remembers one, durably; what is there already is not written again.
    pub fn remember(&self, end: u64) -> io::Result<()> {
        let mut ends = self.read();
        if ends.last() == Some(&end) {
            return Ok(());
        }
        ends.retain(|&other| other != end);
        ends.push(end);
        let first = ends.len().saturating_sub(ENDS_MAX);
        let text: String = ends[first..].iter().map(|end| format!("{end}\n")).collect();
        state_file::replace(&self.path, text.as_bytes())
    }
}

/// The newest superblock on a device of so many bytes, and the end that it lies at. `read` reads
/// a superblock's bytes at an offset.
pub fn find<E>(
    device_bytes: u64,
    remembered: &RememberedEnds,
    read: impl Fn(u64) -> Result<Vec<u8>, E>,
) -> Result<Result<(Superblock, bool, u64), AttachError>, E> {
    let mut found = Err(AttachError::NoMetadata);
    let earlier = remembered.read().into_iter().rev().filter(|&end| end < device_bytes);
    for end in [device_bytes].into_iter().chain(earlier) {
        let mut copies = [Vec::new(), Vec::new()];
        for (copy, at) in copies.iter_mut().zip(metadata::superblock_offsets(end)) {
            if at + SUPERBLOCK_BYTES as u64 <= device_bytes {
                *copy = read(at)?;
            }
        }
        match metadata::read_superblocks([&copies[0], &copies[1]]) {
            Ok((superblock, single)) => {
                let is_newer = |other: &(Superblock, bool, u64)| {
                    superblock.device_bytes == end && superblock.sequence > other.0.sequence
                };
                if found.as_ref().map_or(true, is_newer) {
                    found = Ok((superblock, single, end));
                }
            }
            Err(error) if found == Err(AttachError::NoMetadata) => found = Err(error),
            Err(_) => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use replicator_core::block::ReplicaId;

    use super::*;

    fn fresh(name: &str) -> RememberedEnds {
        let dir =
            std::env::temp_dir().join(format!("replicator-ends-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        RememberedEnds::of(&dir, "r")
    }

    fn superblock(device_bytes: u64, sequence: u64) -> Vec<u8> {
        let superblock = Superblock {
            sequence,
            device_bytes,
            replica: ReplicaId(1),
            data_bytes: 1 << 20,
            room_bytes: 1 << 20,
            bitmaps_for_bytes: 1 << 20,
            internal: true,
            block_bytes: 4096,
            log_extents: 64,
            bitmap_slots: 1,
            ..Superblock::default()
        };
        superblock.encode().to_vec()
    }

    fn looked_up(
        device_bytes: u64,
        remembered: &RememberedEnds,
        places: &[(u64, u64)],
    ) -> Result<(u64, u64), AttachError> {
        let mut disk = HashMap::new();
        for &(end, sequence) in places {
            for at in metadata::superblock_offsets(end) {
                disk.insert(at, superblock(end, sequence));
            }
        }
        let read = |at: u64| {
            Ok::<_, Infallible>(disk.get(&at).cloned().unwrap_or(vec![0; SUPERBLOCK_BYTES]))
        };
        let Ok(found) = find(device_bytes, remembered, read);
        found.map(|(superblock, _, end)| (superblock.sequence, end))
    }

    #[test]
    fn the_newest_is_found_at_the_end_and_where_the_end_was() {
        let ends = fresh("found");
        let (old, new) = (8 << 20, 16 << 20);
        assert_eq!(looked_up(old, &ends, &[(old, 3)]), Ok((3, old)));
        assert_eq!(looked_up(new, &ends, &[(old, 3)]), Err(AttachError::NoMetadata));
        ends.remember(old).unwrap();
        assert_eq!(looked_up(new, &ends, &[(old, 3)]), Ok((3, old)));
        // Moved, and the old copies not destroyed; and a move that was taken back.
        assert_eq!(looked_up(new, &ends, &[(old, 3), (new, 4)]), Ok((4, new)));
        assert_eq!(looked_up(new, &ends, &[(old, 5), (new, 4)]), Ok((5, old)));
        // A smaller device has nothing behind its end.
        assert_eq!(looked_up(4 << 20, &ends, &[(old, 3)]), Err(AttachError::NoMetadata));
    }

    #[test]
    fn ends_are_remembered_once_and_the_oldest_are_forgotten() {
        let ends = fresh("forgotten");
        for end in [1, 2, 2, 1, 3, 4, 5, 6, 7, 8, 9] {
            ends.remember(end).unwrap();
        }
        assert_eq!(ends.read(), [1, 3, 4, 5, 6, 7, 8, 9]);
    }
}
