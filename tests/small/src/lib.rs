//! A very small world around the shipping core: two replicas, one link, two disks, and nothing that
//! happens by itself. Scripts decide what happens next (the traces of `replicator/core`), or a
//! search that tries everything ([`search`]).

pub mod disk;
pub mod hash;
pub mod oracle;
pub mod pair;
pub mod scene;
pub mod script;
pub mod search;
pub mod story;
pub mod trio;
