//! Three replicas around the shipping core, their disks, the three links between them, and a
//! majority that decides at once: R13's last clause. Nothing happens unless it is asked for.
//! [`random`] asks by chance, [`scripted`] tells stories, [`search`] tries every order.

pub mod disk;
pub mod oracle;
pub mod random;
pub mod scripted;
pub mod search;
pub mod world;
