//! What the disk underneath is promised, and what it promises.

use std::fs::{self, File};
use std::ops::ControlFlow;

use nbd_frontend::protocol::{CMD_FLUSH, CMD_WRITE};
use replicator::disk::{Disk, DiskError, DiskLayout, Opening, TestBacking};
use replicator_core::{ByteRange, Span};

use crate::clients::Client;
use crate::{Backing, Dice, Running};

const SIZE: u64 = 8 << 20;

#[test]
fn a_crash_on_a_volatile_disk_loses_exactly_what_was_not_flushed() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Volatile, Span::from_ms(60_000));
    let mut client = Client::new(running.client(true));
    client.write(4096, &[1; 8192]);
    assert_eq!(client.call(CMD_FLUSH, 0, 0, 0, &[]).error, 0);
    client.write(8192, &[2; 8192]);
    client.write(65536, &[3; 512]);
    assert_eq!(client.read(8192, 8192), [2; 8192]);
    assert_eq!(client.read(65536, 512), [3; 512]);
    running.handle.join();
    let left = fs::read(backing.path()).expect("the file of the test");
    assert!(left[4096..12288].iter().all(|&byte| byte == 1), "flushed data were lost");
    assert!(left[12288..].iter().all(|&byte| byte == 0), "unflushed data survived");
}

#[test]
fn a_write_with_fua_survives_a_crash() {
    let backing = Backing::new(SIZE);
    let running = Running::single(&backing, TestBacking::Volatile, Span::from_ms(60_000));
    let mut client = Client::new(running.client(true));
    assert_eq!(client.call(CMD_WRITE, 1, 0, 4096, &[4; 4096]).error, 0);
    running.handle.join();
    let left = fs::read(backing.path()).expect("the file of the test");
    assert!(left[..4096].iter().all(|&byte| byte == 4));
}

#[test]
fn a_locked_disk_is_waited_for_and_its_holder_named() {
    let backing = Backing::new(SIZE);
    let holder = File::open(backing.path()).expect("a second handle");
    holder.try_lock().expect("the lock is free");
    let mut holder = Some(holder);
    let mut told = Vec::new();
    let opening = Opening { data: backing.path(), meta: None, test: TestBacking::Off };
    Disk::open(opening, &mut |waiting| {
        told.push((waiting.to_string(), waiting.holder));
        if told.len() == 3 {
            holder = None;
        }
        assert!(told.len() < 100, "the free lock was not taken");
        ControlFlow::Continue(())
    })
    .expect("the disk, once it is free");
    assert!(told.len() >= 3);
    assert_eq!(told[0].1, Some(std::process::id()));
    assert!(told[0].0.contains(&format!("locked by process {}", std::process::id())));
}

#[test]
fn who_gives_up_waiting_is_told_so() {
    let backing = Backing::new(SIZE);
    let first = backing.open(TestBacking::Off);
    let opening = Opening { data: backing.path(), meta: None, test: TestBacking::Off };
    let second = Disk::open(opening, &mut |_| ControlFlow::Break(()));
    assert!(matches!(second, Err(DiskError::GaveUp { .. })));
    drop(first);
}

#[test]
fn metadata_can_be_written_and_read_at_any_place() {
    let backing = Backing::new(SIZE);
    let disk = backing.open(TestBacking::Off);
    let block = u64::from(disk.logical_block_bytes());
    let bytes = Dice(5).bytes(block as usize * 700);
    let at = SIZE - bytes.len() as u64;
    disk.write_meta(at, &bytes).expect("a write");
    assert!(disk.read_meta(at, bytes.len()).expect("a read") == bytes);
    assert!(disk.read_meta(at + 13, 100).expect("a read") == bytes[13..113]);
    disk.zero_meta(at, block).expect("zeroes");
    assert!(disk.read_meta(at, block as usize).expect("a read").iter().all(|&byte| byte == 0));
}

#[test]
fn a_layout_that_does_not_fit_the_disk_is_refused() {
    let backing = Backing::new(SIZE);
    let mut disk = backing.open(TestBacking::Off);
    let fits = DiskLayout {
        data_bytes: SIZE - (1 << 20),
        block_bytes: 4096,
        region_start: SIZE - (1 << 20),
        region_bytes: 1 << 20,
        ..DiskLayout::default()
    };
    disk.use_layout(fits).expect("a layout that fits");
    let shrunk = DiskLayout { region_start: SIZE, ..fits };
    assert!(matches!(disk.use_layout(shrunk), Err(DiskError::TooSmall { .. })));
    let overlaps = DiskLayout { data_bytes: SIZE, ..fits };
    assert!(matches!(disk.use_layout(overlaps), Err(DiskError::TooSmall { .. })));
    let fine = DiskLayout { block_bytes: 256, ..fits };
    assert!(matches!(disk.use_layout(fine), Err(DiskError::BlockSize { .. })));
}

#[test]
fn a_fingerprint_changes_with_the_samples_and_with_nothing_else() {
    let backing = Backing::new(SIZE);
    let disk = backing.open(TestBacking::Off);
    let samples = [ByteRange::new(0, 4096), ByteRange::new((3 << 20) + 100, 1000)];
    let empty = disk.fingerprint(&samples).expect("a fingerprint");
    disk.write_meta(1 << 20, &[1; 4096]).expect("a write elsewhere");
    assert_eq!(disk.fingerprint(&samples).expect("a fingerprint"), empty);
    disk.write_meta(3 << 20, &[1; 4096]).expect("a write into a sample");
    assert_ne!(disk.fingerprint(&samples).expect("a fingerprint"), empty);
}
