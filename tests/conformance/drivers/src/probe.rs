//! What stands in the place of a core: keeps its inputs and checks the rules that hold always.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replicator_core::wire::Message;
use replicator_core::{BufId, DiskOutcome, Effect, Effects, Input, OpId, PeerIndex, SessionId};

use crate::PEER;

/// In the place of a core.
#[derive(Debug, Default)]
pub struct Probe {
    /// What it was told and nobody has taken.
    pub inputs: VecDeque<Input>,
    /// What broke a rule.
    pub violations: Vec<String>,
    /// Buffers it got and has not given back.
    pub held: BTreeSet<BufId>,
    /// What it orders when it hears a frame of the given number from [`PEER`].
    pub reactions: BTreeMap<u64, Vec<Effect>>,
    frames: u64,
    open_ops: BTreeSet<OpId>,
    open: BTreeMap<PeerIndex, SessionId>,
    newest: BTreeMap<PeerIndex, SessionId>,
}

impl Probe {
    /// A step: checks and keeps the input; what it orders on its own.
    pub fn step(&mut self, input: Input) -> Effects {
        if let Err(broken) = self.take_note(&input) {
            self.violations.push(broken);
        }
        let mut effects = Effects::new();
        if let Input::PeerSaid { peer: PEER, .. } = input {
            self.frames += 1;
            effects = self.reactions.remove(&self.frames).unwrap_or_default();
        }
        if !matches!(input, Input::TimePassed) {
            self.inputs.push_back(input);
        }
        effects.iter().for_each(|effect| self.ordered(effect));
        effects
    }

    /// The rules that hold always.
    fn take_note(&mut self, input: &Input) -> Result<(), String> {
        let must = |holds: bool, rule: &str| {
            if holds { Ok(()) } else { Err(format!("{rule}: {input:?}")) }
        };
        match input {
            Input::DiskDone { op, result } => {
                must(self.open_ops.remove(op), "what is not under way is not done")?;
                if let Ok(DiskOutcome::Read { data: Some(buf) }) = result {
                    must(self.held.insert(*buf), "a buffer in use is not given")?;
                }
            }
            Input::PeerConnected { peer, session, .. } => {
                let rises = self.newest.insert(*peer, *session).is_none_or(|old| old < *session);
                let open = self.open.insert(*peer, *session);
                if *peer == PEER {
                    self.frames = 0;
                }
                must(rises, "sessions are numbered upwards")?;
                must(open.is_none(), "a session begins when the one before has ended")?;
            }
            Input::PeerSaid { peer, session, message, data } => {
                let is_new = data.is_none_or(|buf| self.held.insert(buf));
                let carries = matches!(message, Message::Write { .. } | Message::ResyncData { .. });
                must(is_new, "a buffer in use is not given")?;
                must(carries == data.is_some(), "payload comes with the frames that carry it")?;
                must(self.open.get(peer) == Some(session), "nothing of a closed session comes")?;
            }
            Input::LinkLost { peer, session, .. } => {
                let is_open = self.open.get(peer) == Some(session);
                if is_open {
                    self.open.remove(peer);
                }
                must(is_open, "a session that is over is not lost")?;
            }
            Input::ClientRequested { .. }
            | Input::Ordered { .. }
            | Input::Decided { .. }
            | Input::RegisterLearned(_)
            | Input::LeaseChanged { .. }
            | Input::TimePassed => {}
        }
        Ok(())
    }

    /// Takes note of what is ordered, by itself or a test.
    pub fn ordered(&mut self, effect: &Effect) {
        match effect {
            Effect::ReadDisk { op, .. }
            | Effect::ReadEdges { op, .. }
            | Effect::ReadForResync { op, .. }
            | Effect::DigestDisk { op, .. }
            | Effect::WriteDisk { op, .. }
            | Effect::ZeroDisk { op, .. }
            | Effect::FlushDisk { op }
            | Effect::WriteMeta { op, .. }
            | Effect::TakeFingerprint { op, .. } => {
                assert!(self.open_ops.insert(*op), "a test uses {op:?} twice");
            }
            Effect::ClosePeer { peer, session, .. } if self.open.get(peer) == Some(session) => {
                self.open.remove(peer);
            }
            Effect::ReleaseBuf { buf } => {
                assert!(self.held.remove(buf), "a test gives back {buf:?}, which it has not got");
            }
            _ => {}
        }
    }

    /// The session with a peer that is open as far as the probe was told.
    pub fn session(&self, peer: PeerIndex) -> Option<SessionId> {
        self.open.get(&peer).copied()
    }

    /// Starts anew as in a new process; what was found stays.
    pub fn restart(&mut self) {
        let violations = std::mem::take(&mut self.violations);
        *self = Self { violations, ..Self::default() };
    }
}
