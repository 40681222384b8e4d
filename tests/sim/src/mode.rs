//! Which world the seeds of this process have: a pair that an operator moves, a pair whose nodes
//! fence each other, or a cluster.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::world::World;

/// A kind of world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Two nodes and an operator.
    Pair,
    /// Two nodes and one or two witnesses.
    Cluster,
    /// Two nodes that fence each other.
    Fence,
}

static MODE: AtomicU8 = AtomicU8::new(Mode::Pair as u8);

/// The worlds that an argument of the command chooses; from now on seeds are those.
pub fn choose(argument: &str) -> bool {
    let mode = match argument {
        "--cluster" => Mode::Cluster,
        "--fence" => Mode::Fence,
        _ => return false,
    };
    MODE.store(mode as u8, Ordering::Relaxed);
    true
}

/// What seeds are.
pub fn mode() -> Mode {
    let is = |mode: &Mode| *mode as u8 == MODE.load(Ordering::Relaxed);
    [Mode::Pair, Mode::Cluster, Mode::Fence].into_iter().find(is).expect("one of them")
}

/// The argument that chooses it in another process.
pub fn argument() -> Option<&'static str> {
    match mode() {
        Mode::Pair => None,
        Mode::Cluster => Some("--cluster"),
        Mode::Fence => Some("--fence"),
    }
}

/// Whether seeds are clusters.
pub fn is_cluster() -> bool {
    mode() == Mode::Cluster
}

/// The world of a seed, in the way that this process was told.
pub fn world(seed: u64, trace: bool) -> World {
    match mode() {
        Mode::Pair => World::new(seed, trace),
        Mode::Cluster => World::of_a_cluster(seed, trace),
        Mode::Fence => World::of_a_fenced_pair(seed, trace),
    }
}
