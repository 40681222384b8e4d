//! Sessions with peers: a stand-in core applies what a peer sends, and tells what it hears.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use replicator::data_loop::{Core, FromLoop, ToLoop};
use replicator::disk::TestBacking;
use replicator_core::wire::{self, HEADER_BYTES, Header, Message};
use replicator_core::{
    BufId, ByteRange, DiskOutcome, Effect, Effects, Input, LinkLoss, OpId, PeerIndex, Retry,
    SessionId, Span, Status, Time,
};

use crate::{Backing, Dice, LIMIT, Running};

const SIZE: u64 = 16 << 20;
const PEER: PeerIndex = PeerIndex(0);

/// Writes what the peer sends to the disk and acknowledges it. A `Leave` is answered by a dozen
/// pings and the end of the session; a `Follow` by a resync read that goes to the peer.
struct Secondary {
    session: SessionId,
    open: Vec<(OpId, u64, Option<BufId>)>,
    next_op: u64,
    heard: mpsc::Sender<LinkLoss>,
}

impl Core for Secondary {
    fn step(&mut self, _now: Time, input: Input, effects: &mut Effects) {
        let mut send = |session, message, data| {
            effects.push(Effect::SendPeer { peer: PEER, session, message, data });
        };
        match input {
            Input::PeerConnected { session, .. } => self.session = session,
            Input::PeerSaid { session, message, data, .. } => match message {
                Message::Write { seq, range, .. } => {
                    self.next_op += 1;
                    let buf = data.expect("a write has data");
                    self.open.push((OpId(self.next_op), seq, Some(buf)));
                    effects.push(Effect::WriteDisk { op: OpId(self.next_op), range, buf });
                }
                Message::Follow => {
                    self.next_op += 1;
                    self.open.push((OpId(self.next_op), 0, None));
                    let range = ByteRange::new(0, 64 << 10);
                    effects.push(Effect::ReadForResync { op: OpId(self.next_op), range });
                }
                Message::Leave { .. } => {
                    (0..12).for_each(|_| send(session, Message::Ping, None));
                    effects.push(Effect::ClosePeer { peer: PEER, session, retry: Retry::Rarely });
                }
                _ => {}
            },
            Input::DiskDone { op, result } => {
                let at = self.open.iter().position(|open| open.0 == op).expect("an open op");
                let (_, seq, buf) = self.open.swap_remove(at);
                let session = self.session;
                let range = ByteRange::new(0, 64 << 10);
                match result.expect("the disk works") {
                    DiskOutcome::Read { data: Some(buf) } => {
                        let message = Message::ResyncData { tenure: 1, seq: 1, range };
                        send(session, message, Some(buf));
                        effects.push(Effect::ReleaseBuf { buf });
                    }
                    DiskOutcome::Read { data: None } => {
                        send(session, Message::ResyncZero { tenure: 1, seq: 1, range }, None);
                    }
                    _ => {
                        send(session, Message::Ack { seq }, None);
                        let buf = buf.expect("a write has a buffer");
                        effects.push(Effect::ReleaseBuf { buf });
                    }
                }
            }
            Input::LinkLost { why, .. } => self.heard.send(why).expect("the test listens"),
            _ => {}
        }
    }

    fn holds_lease(&self, _: Time) -> bool {
        true
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }

    fn status(&self, _now: Time) -> Status {
        Status::default()
    }
}

fn start(backing: &Backing) -> (Running, mpsc::Receiver<LinkLoss>) {
    let (heard, losses) = mpsc::channel();
    let core = Secondary { session: SessionId(0), open: Vec::new(), next_op: 0, heard };
    let running = Running::start(backing.open(TestBacking::Off), core, Span::from_ms(60_000));
    (running, losses)
}

fn connect(running: &Running, session: u64, leftover: Vec<u8>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    ours.set_read_timeout(Some(LIMIT)).expect("a time-out");
    ours.set_write_timeout(Some(LIMIT)).expect("a time-out");
    let session = SessionId(session);
    let order = ToLoop::Peer { peer: PEER, session, version: 5, stream: theirs.into(), leftover };
    running.handle.send(order).expect("a running loop");
    ours
}

fn frame(message: &Message, data: &[u8]) -> Vec<u8> {
    let (header, control) = wire::encode(message, 0, crc32fast::hash(data));
    [&header, &control[..], data].concat()
}

fn write(seq: u64, start: u64, data: &[u8]) -> Vec<u8> {
    let range = ByteRange::new(start, data.len() as u64);
    frame(&Message::Write { tenure: 1, seq, range, fua: false }, data)
}

/// The next frame; none at the end of the stream.
fn receive(stream: &mut UnixStream) -> Option<(Message, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    if stream.read(&mut header[..1]).expect("a frame in time") == 0 {
        return None;
    }
    stream.read_exact(&mut header[1..]).expect("a whole header");
    let header = Header::decode(&header).expect("a good header");
    let mut payload = vec![0; header.payload_bytes as usize];
    stream.read_exact(&mut payload).expect("a whole payload");
    if !payload.is_empty() {
        assert_eq!(crc32fast::hash(&payload), header.payload_crc);
    }
    let control = if header.carries_data() { &[] } else { &payload[..] };
    Some((wire::decode(&header, control).expect("a good message"), payload))
}

#[test]
fn frames_of_every_size_are_applied_and_acknowledged() {
    let backing = Backing::new(SIZE);
    let (running, _losses) = start(&backing);
    let mut dice = Dice(11);
    let mut model = vec![0; SIZE as usize];
    let mut frames = Vec::new();
    // Without overlap, since the stand-in applies them in any order.
    let mut at = 0;
    for seq in 0.. {
        let blocks = [1, 1, 2, 9, 33, 256][dice.below(6) as usize] * 4096;
        if at + blocks > SIZE {
            break;
        }
        let data = vec![dice.below(255) as u8 + 1; blocks as usize];
        model[at as usize..(at + blocks) as usize].copy_from_slice(&data);
        frames.push(write(seq, at, &data));
        frames.push(frame(&Message::Ping, &[]));
        at += blocks;
    }
    let count = frames.len() / 2;
    assert!(count > 20);
    // The first frame and a half came with the greeting.
    let mut bytes = frames.concat();
    let rest = bytes.split_off(frames[0].len() + frames[1].len() + 100);
    let mut stream = connect(&running, 1, bytes);
    let mut sending = stream.try_clone().expect("a second handle");
    thread::scope(|scope| {
        scope.spawn(move || sending.write_all(&rest).expect("all frames sent"));
        let mut acked = vec![false; count];
        for _ in 0..count {
            match receive(&mut stream) {
                Some((Message::Ack { seq }, _)) => acked[seq as usize] = true,
                other => panic!("{other:?} instead of an acknowledgement"),
            }
        }
        assert!(acked.into_iter().all(|acked| acked));
    });
    let disk = std::fs::read(backing.path()).expect("the file of the test");
    assert!(disk == model, "the disk differs from what was sent");
    running.until_status("an empty pool", |status| status.pool.peers.used_bytes == 0);
}

#[test]
fn a_broken_frame_ends_the_session_and_is_never_applied() {
    let backing = Backing::new(SIZE);
    let good = write(1, 0, &[1; 4096]);
    let large = write(1, 0, &[1; 100 << 10]);
    // In turn: the magic, a field, the header's checksum, a small and a large payload.
    let places = [(&good, 0), (&good, 20), (&good, 61), (&good, 64), (&large, 60 << 10)];
    let (running, losses) = start(&backing);
    for (number, (frame, at)) in places.into_iter().enumerate() {
        let mut frame = frame.clone();
        frame[at] ^= 0x10;
        let session = number as u64 + 1;
        let mut stream = connect(&running, session, Vec::new());
        stream.write_all(&frame).expect("a frame sent");
        assert_eq!(losses.recv_timeout(LIMIT), Ok(LinkLoss::Garbled), "byte {at}");
        running.until(|event| {
            let FromLoop::SessionEnded { session: ended, retry, .. } = event else { return None };
            (ended.0 == session && *retry == Retry::Later).then_some(())
        });
        assert!(receive(&mut stream).is_none(), "the connection was not closed");
    }
    let disk = std::fs::read(backing.path()).expect("the file of the test");
    assert!(disk.iter().all(|&byte| byte == 0), "a broken frame was applied");
    running.until_status("an empty pool", |status| status.pool.peers.used_bytes == 0);
}

#[test]
fn a_session_that_the_core_closes_sends_what_was_ordered_before() {
    let backing = Backing::new(SIZE);
    let (running, losses) = start(&backing);
    let mut stream = connect(&running, 1, Vec::new());
    stream.write_all(&frame(&Message::Leave { sequence: 1 }, &[])).expect("a frame sent");
    for _ in 0..12 {
        assert!(matches!(receive(&mut stream), Some((Message::Ping, _))));
    }
    assert!(receive(&mut stream).is_none());
    let retry = running.until(|event| match event {
        FromLoop::SessionEnded { session: SessionId(1), retry, .. } => Some(*retry),
        _ => None,
    });
    assert_eq!(retry, Retry::Rarely);
    assert_eq!(losses.try_recv(), Err(mpsc::TryRecvError::Empty), "the core closed it itself");
}

#[test]
fn a_session_that_is_sent_whole_ends_at_once() {
    let backing = Backing::new(SIZE);
    let (running, _losses) = start(&backing);
    let took = (1..=5).map(|session| {
        let mut stream = connect(&running, session, Vec::new());
        let began = Instant::now();
        stream.write_all(&frame(&Message::Leave { sequence: 1 }, &[])).expect("a frame sent");
        while receive(&mut stream).is_some() {}
        began.elapsed()
    });
    // Well below the second after which an idle loop looks around.
    let shortest = took.min().expect("five sessions");
    assert!(shortest < Duration::from_millis(500), "the end came after {shortest:?}");
}

#[test]
fn a_closing_session_whose_peer_does_not_read_is_cut_off_in_time() {
    let backing = Backing::new(SIZE);
    let (running, _losses) = start(&backing);
    let mut stream = connect(&running, 1, Vec::new());
    // Fills the way back with resync data that nobody reads.
    std::fs::write(backing.path(), vec![1; SIZE as usize]).expect("data to send");
    let resync = frame(&Message::Follow, &[]);
    for _ in 0..300 {
        stream.write_all(&resync).expect("a frame sent");
    }
    // More than the socket holds (2 MiB), so something waits in front of it.
    running.until_status("80 frames", |status| status.counters.frames_sent >= 80);
    let began = Instant::now();
    stream.write_all(&frame(&Message::Leave { sequence: 1 }, &[])).expect("a frame sent");
    let why = running.until(|event| match event {
        FromLoop::SessionEnded { why, .. } => Some(why.clone()),
        _ => None,
    });
    let took = began.elapsed();
    assert!(took > Duration::from_millis(500), "cut off after {took:?}: {why}");
    running.until_status("an empty pool", |status| status.pool.resync.used_bytes == 0);
}

#[test]
fn a_newer_session_replaces_the_old_one() {
    let backing = Backing::new(SIZE);
    let (running, losses) = start(&backing);
    let mut old = connect(&running, 1, Vec::new());
    let mut new = connect(&running, 2, Vec::new());
    assert!(receive(&mut old).is_none());
    assert_eq!(losses.recv_timeout(LIMIT), Ok(LinkLoss::Closed));
    new.write_all(&write(4, 4096, &[8; 4096])).expect("a frame sent");
    assert!(matches!(receive(&mut new), Some((Message::Ack { seq: 4 }, _))));
}

#[test]
fn a_resync_read_of_zeroes_needs_no_buffer() {
    let backing = Backing::new(SIZE);
    let (running, _losses) = start(&backing);
    let mut stream = connect(&running, 1, Vec::new());
    stream.write_all(&frame(&Message::Follow, &[])).expect("a frame sent");
    assert!(matches!(receive(&mut stream), Some((Message::ResyncZero { .. }, _))));
    assert_eq!(running.status().pool.resync.used_bytes, 0);
    stream.write_all(&write(1, 8192, &[6; 4096])).expect("a frame sent");
    assert!(matches!(receive(&mut stream), Some((Message::Ack { seq: 1 }, _))));
    stream.write_all(&frame(&Message::Follow, &[])).expect("a frame sent");
    let Some((Message::ResyncData { .. }, data)) = receive(&mut stream) else {
        panic!("no data came")
    };
    assert!(data[8192..12288].iter().all(|&byte| byte == 6));
}
