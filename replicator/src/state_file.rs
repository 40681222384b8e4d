//! Files of the state directory: each is replaced as a whole, durably. A crash leaves the old one
//! or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Writes a file anew.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
