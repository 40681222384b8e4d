//! The boot id of this machine: it changes exactly when the machine may have lost its caches
//! (SAFETY.md, R8).

use std::fs;
use std::io;

use replicator_core::block::Incarnation;

const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// The incarnation of everything on this machine.
pub fn of_this_boot() -> io::Result<Incarnation> {
    let text = fs::read_to_string(BOOT_ID_PATH)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(id) => Ok(Incarnation(id)),
        Err(_) => Err(io::Error::other(format!("{BOOT_ID_PATH} holds no id: {text:?}"))),
    }
}

/// A new incarnation, for tests with a disk whose cache dies with the process.
pub fn of_this_process() -> io::Result<Incarnation> {
    random_id().map(Incarnation)
}

/// A random number that is used as an id; never 0.
pub fn random_id() -> io::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u128::from_le_bytes(bytes).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_stays_and_a_process_id_is_new() {
        assert_eq!(of_this_boot().unwrap(), of_this_boot().unwrap());
        assert_ne!(of_this_process().unwrap(), of_this_process().unwrap());
    }
}
