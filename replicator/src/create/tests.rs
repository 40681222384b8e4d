//! What `create` refuses, what it writes, and that it leaves the data area alone.

use std::process::{Command, Stdio};

use super::*;

struct Site {
    dir: PathBuf,
    config: ClusterConfig,
}

impl Site {
    fn new(name: &str, disk_mib: u64, external: bool) -> Self {
        let file = format!("replicator-create-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(file);
        fs::create_dir_all(&dir).unwrap();
        let disk = dir.join("disk");
        File::create(&disk).unwrap().set_len(disk_mib << 20).unwrap();
        let metadata = if external {
            format!("metadata.alpha = \"{}\"", dir.join("meta").display())
        } else {
            String::new()
        };
        let text = format!(
            "cluster = \"c\"\nstate_dir = \"/s\"\n[node.alpha]\naddress = \"127.0.0.1\"\n\
             [node.beta]\naddress = \"127.0.0.2\"\n\
             [resource.shop]\ndisk.alpha = \"{}\"\ndisk.beta = \"/b\"\n{metadata}\n",
            disk.display()
        );
        let config = ClusterConfig::parse(Path::new("test.toml"), text).unwrap();
        Self { dir, config }
    }

    fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    fn create(&self, change: impl FnOnce(&mut CreateRequest<'_>)) -> Result<Created, CreateError> {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let mut request = CreateRequest {
            cluster: &self.config,
            node: self.config.node("alpha").unwrap(),
            resource: self.config.resource("shop").unwrap(),
            key: &key,
            origin: false,
            assume_equal: false,
            destroy: Vec::new(),
            size_bytes: None,
            block_bytes: None,
            life: String::new(),
        };
        change(&mut request);
        create(&request)
    }

    fn superblock(&self) -> Superblock {
        let file = File::open(self.disk()).unwrap();
        let bytes = file.metadata().unwrap().len();
        let mut copies = [[0; 4096]; 2];
        for (copy, at) in copies.iter_mut().zip(metadata::superblock_offsets(bytes)) {
            file.read_exact_at(copy, at).unwrap();
        }
        let (superblock, single) = metadata::read_superblocks([&copies[0], &copies[1]]).unwrap();
        assert!(!single);
        superblock
    }

    fn make_ext4(&self) -> bool {
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F"]).arg(self.disk()).stdout(Stdio::null()).stderr(Stdio::null());
        mkfs.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn an_empty_disk_becomes_a_replica() {
    let site = Site::new("empty", 64, false);
    let created = site.create(|_| {}).unwrap();
    let superblock = site.superblock();
    assert_eq!(superblock.data_bytes, created.size_bytes);
    assert_eq!(superblock.resource, "shop");
    assert_eq!(superblock.peers.len(), 1);
    assert_eq!(superblock.peers[0].node, "beta");
    assert!(superblock.register.set.is_empty(), "without --origin nobody holds the data yet");
}

#[test]
fn an_origin_is_the_only_member_and_is_named_once() {
    let site = Site::new("origin", 64, false);
    site.create(|_| {}).unwrap();
    let alpha = site.config.node("alpha").unwrap();
    let shop = site.config.resource("shop").unwrap();
    name_origin(alpha, shop).unwrap();
    let superblock = site.superblock();
    assert_eq!(superblock.register.set.len(), 1);
    assert_eq!(superblock.register.authority, Some(superblock.replica));
    let error = name_origin(alpha, shop).unwrap_err().to_string();
    assert!(error.contains("shop has an origin already"), "{error}");
}

#[test]
fn naming_the_origin_later_is_the_same_as_creating_it() {
    let later = Site::new("later", 64, false);
    later.create(|_| {}).unwrap();
    let shop = later.config.resource("shop").unwrap();
    name_origin(later.config.node("alpha").unwrap(), shop).unwrap();
    let at_once = Site::new("at-once", 64, false);
    at_once.create(|request| request.origin = true).unwrap();
    let (mut left, right) = (later.superblock(), at_once.superblock());
    assert_eq!(left.sequence, 2);
    left.sequence = right.sequence;
    assert_eq!(left.register.set[0].replica, left.replica);
    left.register.set[0].replica = right.replica;
    left.register.authority = Some(right.replica);
    left.replica = right.replica;
    assert_eq!(left, right);
}

#[test]
fn our_own_older_metadata_are_not_replaced_by_a_slip() {
    let site = Site::new("again", 64, false);
    site.create(|_| {}).unwrap();
    let error = site.create(|_| {}).unwrap_err().to_string();
    assert!(
        error.contains("holds a replica of resource \"shop\", made on node \"alpha\""),
        "{error}"
    );
    assert!(error.ends_with("--force replicator"), "{error}");
    site.create(|request| request.destroy = vec!["replicator".into()]).unwrap();
}

#[test]
fn a_file_system_must_be_named_before_it_is_given_up() {
    let site = Site::new("ext4", 64, false);
    if !site.make_ext4() {
        return;
    }
    let error = site.create(|_| {}).unwrap_err().to_string();
    assert!(error.contains("holds an ext4 file system"), "{error}");
    assert!(error.ends_with("--force ext4"), "{error}");
    let error = site.create(|request| request.destroy = vec!["xfs".into()]).unwrap_err();
    assert!(error.to_string().ends_with("--force xfs,ext4"), "{error}");
    let created = site.create(|request| request.destroy = vec!["ext4".into()]).unwrap();
    assert_eq!(created.given_up, ["an ext4 file system"]);
}

#[test]
fn a_file_system_that_fills_the_disk_is_kept_with_external_metadata() {
    let inside = Site::new("fills", 64, false);
    if !inside.make_ext4() {
        return;
    }
    let error = inside.create(|request| request.origin = true).unwrap_err().to_string();
    assert!(
        error.contains("write metadata.alpha = \"/s/shop.meta\" into [resource.shop]"),
        "{error}"
    );

    let outside = Site::new("kept", 64, true);
    assert!(outside.make_ext4());
    let before = fs::read(outside.disk()).unwrap();
    let created = outside.create(|request| request.origin = true).unwrap();
    assert_eq!(created.kept, ["an ext4 file system"]);
    assert_eq!(created.size_bytes, 64 << 20);
    assert!(fs::read(outside.disk()).unwrap() == before, "the disk must stay as it was");
}

#[test]
fn a_word_for_something_that_is_not_there_means_the_wrong_disk() {
    let site = Site::new("wrong", 64, false);
    let error = site.create(|request| request.destroy = vec!["ext4".into()]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("--force ext4 was given, but"), "{text}");
    assert!(text.ends_with("holds nothing; is it the right disk?"), "{text}");
}

#[test]
fn a_disk_that_is_too_small_or_in_use_is_refused() {
    let site = Site::new("small", 1, false);
    let error = site.create(|_| {}).unwrap_err().to_string();
    assert!(error.contains("too small"), "{error}");
    let site = Site::new("busy", 64, false);
    let _claimed = Claimed::open(&site.disk(), "shop").unwrap();
    let error = site.create(|_| {}).unwrap_err().to_string();
    assert!(error.contains("is in use: process"), "{error}");
    assert!(error.contains("has it locked"), "{error}");
}

#[test]
fn a_smaller_size_is_taken_and_a_larger_one_is_refused() {
    let site = Site::new("size", 64, false);
    let error = site.create(|request| request.size_bytes = Some(65 << 20)).unwrap_err();
    assert!(error.to_string().contains("too small"), "{error}");
    let created = site.create(|request| request.size_bytes = Some(32 << 20)).unwrap();
    assert_eq!(created.size_bytes, 32 << 20);
}
