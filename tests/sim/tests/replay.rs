//! Recordings of a core that writes and leaves, replayed: equal when nothing was changed, good up
//! to where they are cut, and with the first difference shown when something was changed.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::metadata::{self, FormatRequest, Image};
use replicator_core::recording::{HEAD_BYTES, put_effects, put_end, put_input, put_start, title};
use replicator_core::{
    BufId, ByteRange, ClientRequest, Command, Config, DiskFailure, DiskOutcome, Effect, Input,
    PeerConfig, RegisterKeeper, Replica, RequestId, Ticket, Time, Timing,
};
use sim::replay::{Ending, ReplayError, Replayed, replay};

const PROMOTE: Command =
    Command::Promote { old_primary_is_off: true, allow_data_loss: false, alone: true };

/// A core and what it is told, with the recording of both.
struct Story {
    replica: Replica,
    now: Time,
    bytes: Vec<u8>,
    /// Where the records of each step begin.
    steps: Vec<usize>,
    /// Makes of an input what the recording says instead.
    forge: fn(&Input) -> Option<Input>,
    is_stopped: bool,
}

impl Story {
    fn new(forge: fn(&Input) -> Option<Input>) -> Self {
        let device_bytes = 64 << 20;
        let formatted = metadata::format(&FormatRequest {
            device_bytes,
            internal: true,
            disk_bytes: device_bytes,
            data_bytes: None,
            room_bytes: None,
            block_bytes: 4096,
            log_extents: 64,
            resource: "demo".into(),
            resource_id: 5,
            node: "alpha".into(),
            replica: ReplicaId(9),
            peers: vec!["beta".into()],
            bitmap_slots: 1,
            incarnation: Incarnation(1),
            origin: true,
            assume_equal: false,
        })
        .expect("a disk that is large enough");
        let layout = &formatted.layout;
        let mut region = vec![0; layout.region_bytes as usize];
        for (offset, bytes) in &formatted.writes {
            let at = (offset - layout.region_start) as usize;
            region[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let image = Image {
            region: &region,
            device_bytes,
            disk_bytes: device_bytes,
            fingerprint: Some([0; 32]),
        };
        let config = Config {
            node: "alpha".into(),
            peers: vec![PeerConfig { node: "beta".into() }],
            incarnation: Incarnation(1),
            can_punch: true,
            register: RegisterKeeper::OwnSuperblock,
            confirms_reads: false,
            timing: Timing::default(),
        };
        let now = Time(1_000_000_000);
        let mut bytes = title().into_bytes();
        put_start(&mut bytes, now, &config, &image);
        let replica = Replica::attach(config, image, now).expect("fresh metadata");
        Self { replica, now, bytes, steps: Vec::new(), forge, is_stopped: false }
    }

    /// Tells the core something; its disk operations end well and at once.
    fn tell(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            self.now.0 += 1_000_000;
            let mut effects = Vec::new();
            self.steps.push(self.bytes.len());
            let told = (self.forge)(&input);
            put_input(&mut self.bytes, self.now, told.as_ref().unwrap_or(&input));
            self.replica.step(self.now, input, &mut effects);
            put_effects(&mut self.bytes, &effects);
            for effect in effects {
                let (op, outcome) = match effect {
                    Effect::WriteDisk { op, .. }
                    | Effect::FlushDisk { op }
                    | Effect::ReadDisk { op, .. }
                    | Effect::WriteMeta { op, .. } => (op, DiskOutcome::Done),
                    Effect::TakeFingerprint { op, .. } => (op, DiskOutcome::Fingerprint([8; 32])),
                    Effect::Stopped => {
                        self.is_stopped = true;
                        continue;
                    }
                    _ => continue,
                };
                inputs.push(Input::DiskDone { op, result: Ok(outcome) });
            }
        }
    }

    fn pass_time(&mut self) {
        while let Some(deadline) = self.replica.next_deadline()
            && deadline.since(self.now).as_ms() < 5_000
        {
            self.now = self.now.max(deadline);
            self.tell(Input::TimePassed);
        }
    }
}

/// A node starts, becomes primary, writes and stops.
fn story(forge: fn(&Input) -> Option<Input>) -> Story {
    let mut story = Story::new(forge);
    story.tell(Input::TimePassed);
    story.tell(Input::Ordered { ticket: Ticket(1), command: PROMOTE });
    story.pass_time();
    for number in 0..20 {
        let (range, buf) = (ByteRange::new(number << 20, 8192), BufId(number as u32));
        let what = ClientRequest::Write { range, buf, fua: number % 3 == 0 };
        story.tell(Input::ClientRequested { request: RequestId(number), what });
    }
    story.tell(Input::ClientRequested { request: RequestId(99), what: ClientRequest::Flush });
    story.tell(Input::Ordered { ticket: Ticket(2), command: Command::Demote });
    story.tell(Input::Ordered { ticket: Ticket(3), command: Command::Stop });
    story.pass_time();
    assert!(story.is_stopped, "the story ends");
    put_end(&mut story.bytes);
    story
}

fn as_it_was() -> Story {
    story(|_| None)
}

fn replay_bytes(bytes: &[u8]) -> Result<Replayed, ReplayError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("recording-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).expect("a file for the test");
    let replayed = replay(&path);
    fs::remove_file(path).expect("it was there");
    replayed
}

#[test]
fn what_was_not_changed_is_equal() {
    let story = as_it_was();
    let replayed = replay_bytes(&story.bytes).expect("a recording");
    assert!(replayed.difference.is_none(), "{replayed}");
    assert_eq!(replayed.equal, story.steps.len() as u64);
    assert_eq!(replayed.ending, Ending::Orderly);
    assert_eq!(replayed.inputs["ClientRequested"], 21);
    assert!(replayed.to_string().starts_with("equal: "), "{replayed}");
}

#[test]
fn a_recording_that_is_cut_anywhere_is_good_up_to_there() {
    let story = as_it_was();
    let first = story.steps[0];
    for end in (first..story.bytes.len()).step_by(61) {
        let replayed = replay_bytes(&story.bytes[..end]).expect("a recording");
        let begun = story.steps.iter().filter(|&&at| at < end).count() as u64;
        assert!(replayed.difference.is_none(), "cut at {end}: {replayed}");
        assert!(matches!(replayed.ending, Ending::Killed | Ending::Torn));
        assert!(replayed.equal + 1 >= begun, "cut at {end}: {begun} steps, {replayed}");
    }
}

#[test]
fn a_changed_effect_is_the_first_difference() {
    let story = as_it_was();
    let step = story.steps.len() / 2;
    // Another story in front of the same end: the effects of this one step say something else.
    let mut bytes = story.bytes[..story.steps[step]].to_vec();
    let input = &story.bytes[story.steps[step]..];
    let length = u32::from_le_bytes(input[1..5].try_into().expect("four bytes")) as usize;
    bytes.extend_from_slice(&input[..HEAD_BYTES + length]);
    put_effects(&mut bytes, &[Effect::CloseDevice { forced: true }]);
    bytes.extend_from_slice(&story.bytes[story.steps[step + 1]..]);

    let replayed = replay_bytes(&bytes).expect("a recording");
    let text = replayed.to_string();
    let difference = replayed.difference.expect("a difference");
    assert_eq!(difference.step, step as u64 + 1);
    assert_eq!(replayed.equal, step as u64);
    assert_eq!(difference.expected, "CloseDevice { forced: true }");
    assert!(text.starts_with("DIFFERENT: "), "{text}");
    assert!(text.contains("\n    - CloseDevice { forced: true }\n"), "{text}");
    assert!(text.contains(&format!("\n  step {} at ", step + 1)), "{text}");
}

#[test]
fn a_changed_input_shows_in_what_follows() {
    // The recording says that the client asked for something else.
    let forged = story(|input| {
        let Input::ClientRequested { request: RequestId(7), what: _ } = input else { return None };
        let what = ClientRequest::Map { range: ByteRange::new(0, 4096) };
        Some(Input::ClientRequested { request: RequestId(7), what })
    });
    let replayed = replay_bytes(&forged.bytes).expect("a recording");
    let difference = replayed.difference.as_ref().expect("a difference");
    assert!(difference.input.contains("RequestId(7)"), "{replayed}");
    assert!(difference.expected.contains("WriteDisk"), "{replayed}");
    assert!(difference.now.starts_with("MapDisk"), "{replayed}");
    assert!(!difference.before.is_empty());
}

#[test]
fn damage_and_foreign_files_are_refused() {
    let good = as_it_was().bytes;
    let mut damaged = good.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    assert!(matches!(replay_bytes(&damaged), Err(ReplayError::Damaged(..))));
    assert!(matches!(replay_bytes(b"something else\n"), Err(ReplayError::Foreign(_))));
    assert!(matches!(replay_bytes(&[]), Err(ReplayError::Foreign(_))));
    let mut longer = good.clone();
    put_input(&mut longer, Time(0), &Input::TimePassed);
    assert!(matches!(replay_bytes(&longer), Err(ReplayError::Damaged(..))));
    // A failed disk operation is an input like any other: it decodes, and differs.
    let failed = story(|input| match input {
        Input::DiskDone { op, .. } => {
            Some(Input::DiskDone { op: *op, result: Err(DiskFailure::Io(5)) })
        }
        _ => None,
    });
    assert!(replay_bytes(&failed.bytes).expect("a recording").difference.is_some());
}
