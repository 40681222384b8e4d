//! From a path to a running data loop: the disk is opened and locked (R2e), its metadata are read
//! and checked, the core is attached, the loop is started.

use std::ops::ControlFlow;
use std::sync::{OnceLock, mpsc};

use nix::time::{ClockId, clock_gettime};
use replicator_core::block::Incarnation;
use replicator_core::metadata::{self, Image, Superblock};
use replicator_core::{
    Config, Effects, Input, PeerConfig, RegisterKeeper, Replica, Span, Status, Time,
};

use super::{Phase, Resource, Run};
use crate::block_device::Shape;
use crate::config::TestBackingWish;
use crate::data_loop::{self, FromLoop, LoopConfig, ToLoop};
use crate::disk::{Disk, DiskLayout, Opening, TestBacking};
use crate::events::Weight;
use crate::incarnation;
use crate::metadata_end::{self, RememberedEnds};
use crate::recording::{Recorded, Recorder};

impl Resource {
    /// Opens, checks, starts. The error is for people.
    pub(super) fn bring_up(&self, events: mpsc::Sender<FromLoop>) -> Result<(), String> {
        let mut disk = self.open_disk()?;
        let superblock = self.read_superblock(&mut disk)?;
        let layout = superblock.layout();
        disk.use_layout(DiskLayout {
            data_bytes: superblock.data_bytes,
            block_bytes: superblock.block_bytes,
            region_start: layout.region_start,
            region_bytes: layout.region_bytes,
            bitmaps_bytes: layout.bitmaps.last().map_or(0, |bitmap| bitmap.end),
        })
        .map_err(|error| error.to_string())?;

        let fingerprint = if superblock.clean {
            let samples = metadata::fingerprint_samples(superblock.data_bytes);
            Some(disk.fingerprint(&samples).map_err(|error| error.to_string())?)
        } else {
            None
        };
        let region = disk
            .read_meta(layout.region_start, layout.region_bytes as usize)
            .map_err(|error| error.to_string())?;
        let image = Image {
            region: &region,
            device_bytes: disk.meta_device_bytes(),
            disk_bytes: disk.device_bytes(),
            fingerprint,
        };
        let config = Config {
            node: self.node.name.clone(),
            peers: self.peers.iter().map(|node| PeerConfig { node: node.clone() }).collect(),
            incarnation: self.incarnation().map_err(|error| error.to_string())?,
            can_punch: disk.can_punch(),
            timing: self.config.timing,
            register: if self.is_in_cluster() {
                RegisterKeeper::Majority
            } else if self.cluster.fences_lost_primaries() {
                RegisterKeeper::FencedSuperblock
            } else {
                RegisterKeeper::OwnSuperblock
            },
            confirms_reads: self.config.confirms_reads,
        };
        let now = now();
        let recorder = self.start_recording(now, &config, &image)?;
        let replica = Replica::attach(config, image, now).map_err(|error| {
            format!("{}: {error}", self.disk_paths().1.unwrap_or(self.disk_paths().0).display())
        })?;
        self.remember_end(superblock.device_bytes);
        self.start_loop(disk, superblock, (replica, recorder), events)
    }

    /// The recorder of the coming core, when the operator wants one.
    fn start_recording(
        &self,
        now: Time,
        config: &Config,
        image: &Image<'_>,
    ) -> Result<Option<Recorder>, String> {
        let Some(wish) = &self.config.record else { return Ok(None) };
        let mut recorder = Recorder::create(wish)
            .map_err(|error| format!("cannot record into {}: {error}", wish.display()))?;
        recorder.start(now, config, image);
        let text = format!("records every step into {}", recorder.path().display());
        self.emit(Weight::Warning, text);
        Ok(Some(recorder))
    }

    fn open_disk(&self) -> Result<Disk, String> {
        let (data, metadata) = self.disk_paths();
        let test = match self.config.test_backing {
            TestBackingWish::Normal => TestBacking::Off,
            TestBackingWish::Volatile => TestBacking::Volatile,
            TestBackingWish::Null => TestBacking::NoDisk,
        };
        if test != TestBacking::Off {
            let text = format!("TEST BACKING {test:?}: this resource keeps no data safe");
            self.emit(Weight::Warning, text);
        }
        let mut waits_long = false;
        let opening = Opening { data: &data, meta: metadata.as_deref(), test };
        let disk = Disk::open(opening, &mut |waiting| {
            let mut state = self.lock();
            if state.stop_wanted || state.is_closing {
                return ControlFlow::Break(());
            }
            let why = waiting.to_string();
            state.enter(Phase::Starting(why.clone()));
            drop(state);
            if !std::mem::replace(&mut waits_long, true) {
                self.emit(Weight::Warning, why);
            }
            ControlFlow::Continue(())
        });
        disk.map_err(|error| error.to_string())
    }

    fn read_superblock(&self, disk: &mut Disk) -> Result<Superblock, String> {
        let (data, metadata) = self.disk_paths();
        let path = metadata.unwrap_or(data);
        let read = |at| disk.read_meta(at, metadata::SUPERBLOCK_BYTES);
        let found = metadata_end::find(disk.meta_device_bytes(), &self.remembered_ends(), read)
            .map_err(|error| error.to_string())?;
        let (superblock, _, end) = found.map_err(|error| format!("{}: {error}", path.display()))?;
        disk.ends_at(end);
        if superblock.resource != self.name() || superblock.node != self.node.name {
            return Err(format!(
                "{} is the replica of resource {} on node {}, not of {} on {}; were two disks \
                 swapped?",
                path.display(),
                superblock.resource,
                superblock.node,
                self.name(),
                self.node.name
            ));
        }
        Ok(superblock)
    }

    fn remembered_ends(&self) -> RememberedEnds {
        RememberedEnds::of(&self.node.state_dir, self.name())
    }

    /// So that the metadata are found when their device is extended.
    pub(super) fn remember_end(&self, end: u64) {
        if let Err(error) = self.remembered_ends().remember(end) {
            let text = format!(
                "cannot remember where the metadata end, at {end}: {error}; do not extend the disk \
                 while this is so"
            );
            self.emit(Weight::Warning, text);
        }
    }

    /// The boot id; with a volatile test disk, whose cache dies with the process, a number of
    /// this process.
    fn incarnation(&self) -> std::io::Result<Incarnation> {
        static OF_PROCESS: OnceLock<Incarnation> = OnceLock::new();
        if self.config.test_backing != TestBackingWish::Volatile {
            return incarnation::of_this_boot();
        }
        let fresh = incarnation::of_this_process()?;
        Ok(*OF_PROCESS.get_or_init(|| fresh))
    }

    fn start_loop(
        &self,
        disk: Disk,
        superblock: Superblock,
        (replica, recorder): (Replica, Option<Recorder>),
        events: mpsc::Sender<FromLoop>,
    ) -> Result<(), String> {
        let shape = Shape {
            replica_id: superblock.replica.0,
            size_bytes: superblock.data_bytes,
            block_bytes: superblock.block_bytes,
        };
        let register = &superblock.register;
        let was_primary = register.primary == Some(superblock.replica);
        let remembered = self.device.remembered_tenure();
        if !was_primary || remembered != Some(register.tenure) {
            let mut told = |text| self.emit(Weight::Warning, text);
            self.device.fail_leftovers(&shape, remembered, &mut told);
        }
        let config = LoopConfig {
            resource: self.name().to_owned(),
            disk,
            pool_bytes: self.config.pool_bytes,
            client_timeout: Span::from_ms(self.config.client_timeout_ms),
            lease: self.is_in_cluster().then(|| self.lease.clone()),
        };
        // Held while the loop starts, so that its first event finds the run in its place.
        let mut state = self.lock();
        let spawned = match recorder {
            Some(recorder) => data_loop::spawn(config, Recorded::new(replica, recorder), events),
            None => data_loop::spawn(config, replica, events),
        };
        let handle = spawned.map_err(|error| error.to_string())?;
        state.run = Some(Run { handle, shape, serving: None, is_retiring: false });
        if let (Some(learned), Some(run)) = (&state.learned, &state.run) {
            let told = Input::RegisterLearned(Box::new(learned.clone()));
            run.handle.send(ToLoop::Register(told)).map_err(|error| error.to_string())?;
        }
        state.enter(Phase::Up);
        drop(state);
        self.changed.notify_all();
        self.emit(Weight::Info, "up");
        Ok(())
    }
}

impl data_loop::Core for Replica {
    fn step(&mut self, now: Time, input: Input, effects: &mut Effects) {
        Replica::step(self, now, input, effects);
    }

    fn next_deadline(&self) -> Option<Time> {
        Replica::next_deadline(self)
    }

    fn holds_lease(&self, now: Time) -> bool {
        Replica::holds_lease(self, now)
    }

    fn status(&self, now: Time) -> Status {
        Replica::status(self, now)
    }
}

/// The clock of the cores.
fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
    Time(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
