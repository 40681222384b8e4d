//! Each known content is recognised on a real image, made by the real tools where they are
//! installed, else from its bytes on disk; an empty disk is empty.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

struct Image(PathBuf);

impl Image {
    fn new(name: &str, bytes: u64) -> Self {
        let file = format!("replicator-signature-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(file);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        Self(path)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> &Self {
        File::options().write(true).open(&self.0).unwrap().write_all_at(bytes, at).unwrap();
        self
    }

    /// Runs a tool on the image; false when the machine does not have it.
    fn run(&self, tool: &str, arguments: &[&str]) -> bool {
        let mut command = Command::new(tool);
        command.args(arguments).arg(&self.0).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            Ok(status) => {
                assert!(status.success(), "{tool} failed");
                true
            }
            Err(_) => false,
        }
    }

    fn words(&self) -> Vec<&'static str> {
        self.findings().iter().map(|finding| finding.word).collect()
    }

    fn findings(&self) -> Vec<Finding> {
        let file = File::open(&self.0).unwrap();
        find(&file, file.metadata().unwrap().len()).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn an_empty_disk_holds_nothing_and_one_byte_is_data() {
    let image = Image::new("empty", 8 << 20);
    assert_eq!(image.findings(), []);
    image.write((8 << 20) - 5, &[1]);
    let findings = image.findings();
    assert_eq!(findings[0].word, "data");
    assert!(findings[0].title.contains("not zero at byte 8388603"), "{}", findings[0].title);
}

#[test]
fn file_systems_of_the_real_tools_are_found_with_their_size() {
    let sizes = [
        ("mkfs.ext4", vec!["-q", "-F"], "ext4", 64 << 20),
        ("mkfs.ext2", vec!["-q", "-F"], "ext2", 64 << 20),
        ("mkfs.xfs", vec!["-q", "-f"], "xfs", 320 << 20),
        ("mkfs.btrfs", vec!["-q", "-f"], "btrfs", 128 << 20),
        ("mkswap", vec![], "swap", 64 << 20),
    ];
    for (tool, arguments, word, bytes) in sizes {
        let image = Image::new(tool, bytes);
        if !image.run(tool, &arguments) {
            continue;
        }
        assert_eq!(image.words(), [word], "{tool}");
        assert_eq!(image.findings()[0].end, Some(bytes), "{tool}");
    }
}

#[test]
fn an_ext4_smaller_than_its_disk_says_where_it_ends() {
    let image = Image::new("small-ext4", 64 << 20);
    if image.run("mkfs.ext4", &["-q", "-F"]) && image.run("resize2fs", &["-M"]) {
        let end = image.findings()[0].end.unwrap();
        assert!(end < 48 << 20, "{end}");
    }
}

#[test]
fn volume_managers_and_tables_are_found_by_their_bytes() {
    let entry: [u8; 16] = [0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
    type Piece<'a> = (u64, &'a [u8]);
    let cases: [(&str, &[Piece<'_>]); 9] = [
        ("lvm", &[(512, b"LABELONE"), (536, b"LVM2 001")]),
        ("luks", &[(0, b"LUKS\xba\xbe\0\x02")]),
        ("md", &[(4096, &[0xfc, 0x4e, 0x2b, 0xa9])]),
        ("md", &[((8 << 20) - 8192, &[0xfc, 0x4e, 0x2b, 0xa9])]),
        ("gpt", &[(510, &[0x55, 0xaa]), (446, &entry), (512, b"EFI PART")]),
        ("gpt", &[((8 << 20) - 512, b"EFI PART")]),
        ("mbr", &[(510, &[0x55, 0xaa]), (446, &entry)]),
        ("drbd", &[((8 << 20) - 4096 + 60, &[0x83, 0x74, 0x02, 0x6b])]),
        ("zfs", &[((128 << 10) + 2048, &0x00ba_b10cu64.to_le_bytes())]),
    ];
    for (word, bytes) in cases {
        let image = Image::new("bytes", 8 << 20);
        for (at, piece) in bytes {
            image.write(*at, piece);
        }
        assert_eq!(image.words(), [word]);
    }
}
