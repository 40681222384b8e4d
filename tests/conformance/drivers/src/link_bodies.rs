//! What two cores may rely on of the connection between them. Each body runs on the simulated
//! network and on real sockets.

use replicator_core::wire::Message;
use replicator_core::{BufId, ByteRange, Effect, Input, LinkLoss, Retry, SessionId};

use crate::{BLOCK, BLOCK_BYTES, Crash, Nodes, PEER};

fn data_frame(seq: u64, blocks: u64) -> Message {
    let range = ByteRange::new(seq * BLOCK_BYTES, blocks * BLOCK_BYTES);
    match seq % 2 {
        0 => Message::Write { tenure: 1, seq, range, fua: false },
        _ => Message::ResyncData { tenure: 1, seq, range },
    }
}

fn contents(seq: u64, blocks: u64) -> Vec<u64> {
    (0..blocks * BLOCK).map(|sector| seq * 1_000 + sector + 1).collect()
}

fn send(session: SessionId, message: Message, data: Option<BufId>) -> Effect {
    Effect::SendPeer { peer: PEER, session, message, data }
}

fn ack(seq: u64) -> Message {
    Message::Ack { seq }
}

/// The next input, which must be a frame of the session.
fn hear_frame(nodes: &mut dyn Nodes, node: usize, of: SessionId) -> (Message, Option<BufId>) {
    match nodes.hear(node) {
        Input::PeerSaid { peer: PEER, session, message, data } if session == of => (message, data),
        other => panic!("{other:?} instead of a frame of {of:?}"),
    }
}

/// The numbers of acknowledgements that come before the session is lost, and why it is.
fn hear_until_lost(nodes: &mut dyn Nodes, node: usize, of: SessionId) -> (Vec<u64>, LinkLoss) {
    let mut heard = Vec::new();
    loop {
        match nodes.hear(node) {
            Input::PeerSaid { session, message: Message::Ack { seq }, data: None, .. }
                if session == of =>
            {
                heard.push(seq);
            }
            Input::LinkLost { session, why, .. } if session == of => return (heard, why),
            other => panic!("{other:?} while {of:?} stands"),
        }
    }
}

/// Frames of one session arrive whole, once and in order, in both directions at the same time;
/// each payload in the buffer that comes with its frame.
pub fn frames_arrive_in_order_with_their_payload(nodes: &mut dyn Nodes) {
    const FRAMES: u64 = 60;
    let length = |seq: u64| [1, 1, 2, 9, 33, 64][(seq % 6) as usize];
    let session = nodes.connect();
    let mut sent = [Vec::new(), Vec::new()];
    for seq in 0..FRAMES {
        for (node, sent) in sent.iter_mut().enumerate() {
            let mut effects = vec![send(session[node], ack(seq), None)];
            if seq % 3 == node as u64 {
                let buf = nodes.give(node, &contents(seq, length(seq)));
                effects.push(send(session[node], data_frame(seq, length(seq)), Some(buf)));
                // The driver still needs the bytes, the core does not.
                effects.push(Effect::ReleaseBuf { buf });
                sent.push(seq);
            }
            nodes.order(node, effects);
        }
        // Every few steps the other end takes what came, so that no window is needed.
        if seq % 6 == 5 {
            for node in 0..2 {
                let sent = std::mem::take(&mut sent[1 - node]);
                for told in seq - 5..=seq {
                    assert_eq!(hear_frame(nodes, node, session[node]), (ack(told), None));
                    if !sent.contains(&told) {
                        continue;
                    }
                    let (message, data) = hear_frame(nodes, node, session[node]);
                    assert_eq!(message, data_frame(told, length(told)));
                    let buf = data.expect("a payload");
                    let sectors = length(told) * BLOCK;
                    assert_eq!(nodes.look(node, buf, sectors), contents(told, length(told)));
                    nodes.order(node, vec![Effect::ReleaseBuf { buf }]);
                }
            }
        }
    }
    nodes.settle();
    assert_eq!([nodes.buffers(0), nodes.buffers(1)], [0, 0]);
}

/// A core that closes a session has sent what it ordered before, and hears nothing of it any
/// more: neither frames nor the loss. The other side hears all, then the loss, once.
pub fn a_closed_session_delivers_what_was_ordered_and_is_silent(nodes: &mut dyn Nodes) {
    let session = nodes.connect();
    let buf = nodes.give(0, &contents(8, 64));
    let mut effects: Vec<Effect> = (0..8).map(|seq| send(session[0], ack(seq), None)).collect();
    effects.push(send(session[0], data_frame(8, 64), Some(buf)));
    effects.push(send(session[0], ack(9), None));
    effects.push(Effect::ReleaseBuf { buf });
    effects.push(Effect::ClosePeer { peer: PEER, session: session[0], retry: Retry::Never });
    // Of no session any more: dropped silently.
    effects.push(send(session[0], ack(10), None));
    nodes.order(0, effects);
    for seq in 0..8 {
        assert_eq!(hear_frame(nodes, 1, session[1]), (ack(seq), None));
    }
    let (message, data) = hear_frame(nodes, 1, session[1]);
    assert_eq!(message, data_frame(8, 64));
    let buf = data.expect("a payload");
    assert_eq!(nodes.look(1, buf, 64 * BLOCK), contents(8, 64));
    nodes.order(1, vec![Effect::ReleaseBuf { buf }]);
    assert_eq!(hear_until_lost(nodes, 1, session[1]), (vec![9], LinkLoss::Closed));
    // Closing what is over is no order at all, and so is sending.
    let close = Effect::ClosePeer { peer: PEER, session: session[1], retry: Retry::Now };
    nodes.order(1, vec![send(session[1], ack(11), None), close]);
    let next = nodes.connect();
    nodes.order(1, vec![send(next[1], ack(12), None)]);
    assert_eq!(hear_frame(nodes, 0, next[0]), (ack(12), None));
}

/// A core may close a session when it hears a frame of it, whatever came behind that frame at the
/// same time: nothing of that is told, its buffers are not lost, and the end is not told either.
pub fn nothing_comes_behind_the_frame_at_which_a_core_closes(nodes: &mut dyn Nodes) {
    let session = nodes.connect();
    nodes.react(
        0,
        3,
        vec![Effect::ClosePeer { peer: PEER, session: session[0], retry: Retry::Never }],
    );
    let bufs = [1, 2].map(|seq| nodes.give(1, &contents(seq, 2)));
    let mut effects: Vec<Effect> = (1..=3).map(|seq| send(session[1], ack(seq), None)).collect();
    for (seq, buf) in (4..).zip(bufs) {
        effects.push(send(session[1], data_frame(seq, 2), Some(buf)));
        effects.push(send(session[1], ack(seq), None));
        effects.push(Effect::ReleaseBuf { buf });
    }
    nodes.order(1, effects);
    for seq in 1..=3 {
        assert_eq!(hear_frame(nodes, 0, session[0]), (ack(seq), None));
    }
    assert_eq!(hear_until_lost(nodes, 1, session[1]), (vec![], LinkLoss::Closed));
    let next = nodes.connect();
    nodes.order(1, vec![send(next[1], ack(7), None)]);
    assert_eq!(hear_frame(nodes, 0, next[0]), (ack(7), None));
    nodes.settle();
    assert_eq!([nodes.buffers(0), nodes.buffers(1)], [0, 0]);
}

/// A process that is gone is a lost session for the other, told once; what came before is a
/// beginning of what was sent. Frames for the lost session are dropped silently.
pub fn the_end_of_a_process_ends_its_session(nodes: &mut dyn Nodes) {
    let session = nodes.connect();
    let effects = (0..20).map(|seq| send(session[1], ack(seq), None)).collect();
    nodes.order(1, effects);
    assert_eq!(hear_frame(nodes, 0, session[0]), (ack(0), None));
    assert!(nodes.crash(1, Crash::Process));
    let (heard, _) = hear_until_lost(nodes, 0, session[0]);
    assert!(heard.iter().copied().eq(1..=heard.len() as u64), "{heard:?}");
    let buf = nodes.give(0, &contents(1, 1));
    nodes.order(0, vec![send(session[0], data_frame(1, 1), Some(buf))]);
    nodes.order(0, vec![Effect::ReleaseBuf { buf }]);
    nodes.restart(1);
    let next = nodes.connect();
    let effects = vec![send(session[0], ack(30), None), send(next[0], ack(31), None)];
    nodes.order(0, effects);
    assert_eq!(hear_frame(nodes, 1, next[1]), (ack(31), None));
    nodes.settle();
    assert_eq!(nodes.buffers(0), 0);
}

/// A newer session takes the place of the one that stands; the old one is lost first (the probe
/// checks the order).
pub fn a_newer_session_replaces_the_old_one(nodes: &mut dyn Nodes) {
    let first = nodes.connect();
    let second = nodes.connect();
    nodes.order(0, vec![send(first[0], ack(1), None), send(second[0], ack(2), None)]);
    assert_eq!(hear_frame(nodes, 1, second[1]), (ack(2), None));
    nodes.order(1, vec![send(second[1], ack(3), None)]);
    assert_eq!(hear_frame(nodes, 0, second[0]), (ack(3), None));
}
