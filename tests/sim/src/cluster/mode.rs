//! Which world the seeds of this process have: a pair without a witness, or a cluster.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::world::World;

static IS_CLUSTER: AtomicBool = AtomicBool::new(false);

/// From now on seeds are clusters of three nodes.
pub fn choose_cluster() {
    IS_CLUSTER.store(true, Ordering::Relaxed);
}

/// Whether seeds are clusters.
pub fn is_cluster() -> bool {
    IS_CLUSTER.load(Ordering::Relaxed)
}

/// The world of a seed, in the way that this process was told.
pub fn world(seed: u64, trace: bool) -> World {
    if is_cluster() { World::of_a_cluster(seed, trace) } else { World::new(seed, trace) }
}
