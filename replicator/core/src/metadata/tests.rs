//! Slots of the dirty bitmaps: who gets which, and what older disks say.

use alloc::string::String;
use alloc::vec;

use super::*;
use crate::block::ReplicaId;

fn with_slots(bitmap_slots: u8, peers: &[(&str, u8)]) -> Superblock {
    let record = |&(node, slot): &(&str, u8)| PeerRecord {
        node: node.into(),
        slot,
        base: 7,
        replica: ReplicaId(u128::from(slot) + 10),
        ..PeerRecord::default()
    };
    let peers = peers.iter().map(record).collect();
    Superblock { bitmap_slots, peers, ..Superblock::default() }
}

fn slots(superblock: &Superblock) -> Vec<(&str, u8)> {
    superblock.peers.iter().map(|peer| (peer.node.as_str(), peer.slot)).collect()
}

#[test]
fn a_new_peer_gets_a_free_bitmap_and_lacks_everything_wherever_its_name_sorts() {
    let mut superblock = with_slots(2, &[("gamma", 0)]);
    let before = superblock.layout();
    superblock.take_peers(&["beta", "gamma"]).unwrap();
    assert_eq!(slots(&superblock), [("beta", 1), ("gamma", 0)]);
    let [beta, gamma] = [0, 1].map(|at| superblock.peers[at].clone());
    assert!(beta.all_dirty && beta.base == 0 && beta.replica == ReplicaId::NONE);
    assert!(!gamma.all_dirty && gamma.base == 7, "what is known of others stays");
    assert_eq!(superblock.layout(), before, "nothing moves");
}

#[test]
fn who_is_named_no_more_gives_its_bitmap_up_and_comes_back_as_a_stranger() {
    let mut superblock = with_slots(2, &[("beta", 0), ("gamma", 1)]);
    superblock.take_peers(&["gamma"]).unwrap();
    assert_eq!(slots(&superblock), [("gamma", 1)]);
    superblock.take_peers(&["beta", "gamma"]).unwrap();
    assert_eq!(slots(&superblock), [("beta", 0), ("gamma", 1)]);
    assert!(superblock.peers[0].all_dirty && superblock.peers[0].replica == ReplicaId::NONE);
}

#[test]
fn the_disk_of_a_peer_is_refused_by_its_name() {
    let mut superblock = with_slots(2, &[("alpha", 0)]);
    superblock.node = "beta".into();
    let error = superblock.take_peers(&["beta"]).unwrap_err();
    assert_eq!(error, AttachError::OfPeer("beta".into()));
    assert!(alloc::format!("{error}").contains("disk of beta"));
}

#[test]
fn a_disk_with_too_few_bitmaps_says_how_many_and_what_to_do() {
    let error = with_slots(1, &[("beta", 0)]).take_peers(&["beta", "gamma"]).unwrap_err();
    assert_eq!(error, AttachError::TooFewSlots(1, 2));
    assert!(alloc::format!("{error}").contains("replctl create --force"));
}

#[test]
fn two_peers_never_share_a_bitmap() {
    for (wrong, slots, peers) in [
        ("shared", 2, [("beta", 1), ("gamma", 1)]),
        ("beyond", 2, [("beta", 0), ("gamma", 2)]),
        ("too many", 9, [("beta", 0), ("gamma", 1)]),
    ] {
        assert!(!with_slots(slots, &peers).slots_are_sound(), "{wrong}");
    }
    assert!(with_slots(3, &[("beta", 2), ("gamma", 0)]).slots_are_sound());
}

#[test]
fn a_disk_of_format_2_has_a_bitmap_for_each_peer_and_no_other() {
    let superblock = with_slots(2, &[("beta", 0), ("gamma", 1)]);
    let new = superblock.encode();
    assert_eq!(Superblock::decode(&new).unwrap(), superblock);
    // The same disk in format 2: without the count of slots, and without the slot of each peer.
    let mut body = new[..SUPERBLOCK_BYTES - 4].to_vec();
    body[8..12].copy_from_slice(&2u32.to_le_bytes());
    for name in ["gamma", "beta"] {
        let at = body.windows(name.len()).rposition(|part| part == name.as_bytes()).unwrap();
        body.remove(at + name.len());
        if name == "beta" {
            // Before it: the count of slots, the count of peers, the length of the name.
            body.remove(at - 3);
        }
    }
    body.resize(SUPERBLOCK_BYTES - 4, 0);
    let crc = crc32fast::hash(&body);
    body.extend_from_slice(&crc.to_le_bytes());
    let old = Superblock::decode(&body).unwrap();
    assert_eq!(old.bitmap_slots, 2);
    assert_eq!(old, superblock);
    let format = FormatRequest {
        device_bytes: 64 << 20,
        internal: true,
        disk_bytes: 64 << 20,
        data_bytes: None,
        room_bytes: None,
        block_bytes: 512,
        log_extents: 64,
        resource: "r".into(),
        resource_id: 1,
        node: "alpha".into(),
        replica: ReplicaId(1),
        peers: vec![String::from("beta")],
        bitmap_slots: BITMAP_SLOTS_MIN,
        incarnation: Incarnation(1),
        origin: false,
        assume_equal: false,
    };
    let spare = super::format(&format).unwrap();
    assert_eq!(spare.layout.bitmaps.len(), 2, "a third replica finds room");
}

fn grown(data_bytes: u64, room_bytes: u64, bitmaps_for_bytes: u64) -> Superblock {
    Superblock {
        data_bytes,
        room_bytes,
        bitmaps_for_bytes,
        device_bytes: 64 << 20,
        internal: true,
        block_bytes: 4096,
        log_extents: 64,
        replica: ReplicaId(1),
        ..with_slots(1, &[("beta", 0)])
    }
}

#[test]
fn room_needs_format_4_and_a_disk_without_any_keeps_the_older_one() {
    let version = |superblock: &Superblock| {
        let bytes = superblock.encode();
        assert_eq!(Superblock::decode(&bytes).as_ref(), Ok(superblock));
        bytes[8]
    };
    let mib = 1 << 20;
    assert_eq!(version(&grown(8 * mib, 8 * mib, 8 * mib)), 3);
    assert_eq!(version(&grown(8 * mib, 16 * mib, 16 * mib)), 4);
    assert_eq!(version(&grown(8 * mib, 8 * mib, 16 * mib)), 4, "moved, and nothing zeroed yet");
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let mib = 1 << 20;
    assert!(grown(8 * mib, 16 * mib, 32 * mib).check().is_ok());
    for (what, wrong) in [
        ("room of the data area", grown(8 * mib, 4 * mib, 32 * mib)),
        ("room of the data area", grown(8 * mib, 16 * mib, 12 * mib)),
        ("room of the data area", grown(8 * mib, 16 * mib + 512, 32 * mib)),
        ("size of the device", grown(8 * mib, 16 * mib, 64 * mib)),
    ] {
        assert_eq!(wrong.check(), Err(AttachError::Bounds(what)), "{wrong:?}");
    }
}
