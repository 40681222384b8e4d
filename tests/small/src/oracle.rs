//! What may be found on a disk, and who may answer: the promises (a) and (b) of the oracle in a
//! world so small that every write has a letter of its own.
//!
//! A write that was acknowledged, or read, must be found again, unless a later one replaced it, or
//! unless every replica that held it lost its power before a flush covered it.

use replicator_core::ClientError;

use crate::disk::{Payload, ZERO};
use crate::pair::{BLOCK_BYTES, ClientAsks, Happened, Pair};

/// Requests are named by letters, from this one on.
pub const FIRST_LETTER: u8 = b'A';

/// How a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
enum Fate {
    Asked,
    /// It must be found.
    Promised,
    /// Its answer was lost, or it failed: it may be found or not.
    Unknown,
    /// All who held it lost their power: it may be gone.
    Excused,
}

#[derive(Clone, Copy, Debug, Hash)]
struct Known {
    letter: u8,
    /// `None` for what is no write.
    block: Option<usize>,
    fua: bool,
    fate: Fate,
    flushed: bool,
    /// Members when it was acknowledged that kept their power since it was asked, a bit each.
    holders: u8,
    /// Nodes that lost their power since it was asked.
    unpowered: u8,
    /// Requests that had been acknowledged when it was asked, a bit each.
    after: u32,
}

impl Known {
    /// A promise that was only kept in caches ends with the power of all who made it.
    fn excuse(&mut self) {
        let all_lost = self.holders & !self.unpowered == 0;
        if self.fate == Fate::Promised && all_lost && !self.flushed {
            self.fate = Fate::Excused;
        }
    }
}

/// The memory of those who watch.
#[derive(Clone, Debug, Default, Hash)]
pub struct Oracle {
    requests: Vec<Known>,
}

impl Oracle {
    /// A client asks; the letter names the request.
    pub fn asked(&mut self, letter: u8, asks: ClientAsks) {
        let (block, fua) = match asks {
            ClientAsks::Write(range, fua) => (Some((range.start / BLOCK_BYTES) as usize), fua),
            ClientAsks::Trim(range) => (Some((range.start / BLOCK_BYTES) as usize), false),
            _ => (None, false),
        };
        let letter = if matches!(asks, ClientAsks::Trim(_)) { ZERO } else { letter };
        let promised = |known: &Known| known.fate == Fate::Promised;
        let after = self.bits(promised);
        let fate = Fate::Asked;
        let known =
            Known { letter, block, fua, fate, flushed: false, holders: 0, unpowered: 0, after };
        self.requests.push(known);
    }

    fn bits(&self, which: impl Fn(&Known) -> bool) -> u32 {
        let numbers = self.requests.iter().enumerate();
        numbers.filter(|(_, known)| which(known)).fold(0, |all, (at, _)| all | 1 << at)
    }

    /// A process or a machine is gone: who asked it will never know.
    pub fn answers_lost(&mut self) {
        for known in &mut self.requests {
            if known.fate == Fate::Asked {
                known.fate = Fate::Unknown;
            }
        }
    }

    /// A machine lost its power.
    pub fn power_lost(&mut self, node: usize) {
        for known in &mut self.requests {
            known.unpowered |= 1 << node;
            known.excuse();
        }
    }

    /// Takes what happened in one step; an error names the promise that was broken.
    pub fn watch(&mut self, pair: &Pair, happened: &[Happened]) -> Result<(), String> {
        for event in happened {
            match event {
                Happened::Replied(node, request, result) => {
                    self.replied(pair, *node, *request, result)?;
                }
                Happened::Opened(node, _) => self.opened(pair, *node)?,
                Happened::Committed(_, what) => {
                    // R2c, R3, R6c: all that is acknowledged was flushed before these commits.
                    let flushing = ["the office was taken", "a member left the in-sync set"];
                    if flushing.contains(what) || *what == "the office was released" {
                        self.flushed(u32::MAX);
                    }
                }
                Happened::Answered(..) => {}
            }
        }
        self.at_rest(pair)
    }

    fn flushed(&mut self, which: u32) {
        for (at, known) in self.requests.iter_mut().enumerate() {
            known.flushed |= which >> at & 1 == 1 && known.fate == Fate::Promised;
        }
    }

    fn replied(
        &mut self,
        pair: &Pair,
        node: usize,
        request: u64,
        result: &Result<Payload, ClientError>,
    ) -> Result<(), String> {
        let at = request as usize - usize::from(FIRST_LETTER);
        let Ok(seen) = result else {
            self.requests[at].fate = Fate::Unknown;
            return Ok(());
        };
        let tenure = |node: usize| pair.process(node).map(|p| p.replica.status(pair.now).register);
        let (mine, other) = (tenure(node), tenure(1 - node));
        let serves = pair.process(1 - node).is_some_and(|process| process.device.is_some());
        if serves && other.map(|state| state.tenure) > mine.as_ref().map(|state| state.tenure) {
            return Err("(b) an older tenure answers while a later one serves".into());
        }
        let set = mine.expect("it answered").set;
        let holders = set.iter().fold(0, |all, member| all | 1 << (member.replica.0 as u8 - 1));
        if let Some(letters) = seen {
            // Reads in this world are of block 0.
            return self.found(0, letters[0], "read", holders);
        }
        let known = &mut self.requests[at];
        known.fate = Fate::Promised;
        known.holders = holders;
        known.flushed = known.fua;
        known.excuse();
        if known.block.is_none() {
            let covered = known.after;
            self.flushed(covered);
        }
        Ok(())
    }

    fn opened(&mut self, pair: &Pair, node: usize) -> Result<(), String> {
        if pair.process(1 - node).is_some_and(|process| process.device.is_some()) {
            return Err("(b) both nodes serve".into());
        }
        for (block, letters) in pair.node(node).disk.live().chunks(8).enumerate() {
            self.may_be(block, letters[0], "on the disk of a new primary")?;
        }
        Ok(())
    }

    /// A client read it: from now on it counts as promised.
    fn found(&mut self, block: usize, letter: u8, how: &str, holders: u8) -> Result<(), String> {
        self.may_be(block, letter, how)?;
        let known = self.requests.iter_mut();
        for known in known.filter(|known| known.letter == letter && known.block == Some(block)) {
            if known.fate == Fate::Asked {
                let name = char::from(letter);
                return Err(format!("R5b: {name} was read before it was acknowledged"));
            }
            if known.fate != Fate::Promised {
                (known.fate, known.holders) = (Fate::Promised, holders);
            }
        }
        Ok(())
    }

    /// Whether these may be the contents of a block: nothing that was over before a promised write
    /// was asked for.
    fn may_be(&self, block: usize, letter: u8, how: &str) -> Result<(), String> {
        let here = |known: &&Known| known.block == Some(block);
        let named = self.requests.iter().position(|k| k.block == Some(block) && k.letter == letter);
        let newer = self.requests.iter().filter(here).find(|known| {
            known.fate == Fate::Promised
                && match named {
                    Some(at) => known.after >> at & 1 == 1,
                    None => known.letter != letter,
                }
        });
        match newer {
            Some(newer) => Err(format!(
                "(a) block {block} is {} {how}, and {} was acknowledged after it",
                char::from(letter),
                char::from(newer.letter)
            )),
            None if named.is_none() && letter != ZERO => Err(format!(
                "(a) block {block} is {} {how}, which nobody wrote there",
                char::from(letter)
            )),
            None => Ok(()),
        }
    }

    /// When nothing is under way between a primary and a member, their disks are equal.
    fn at_rest(&self, pair: &Pair) -> Result<(), String> {
        let quiet = pair.towards.iter().all(std::collections::VecDeque::is_empty)
            && (0..2).all(|node| {
                let there = pair.node(node);
                there.ops.is_empty()
                    && there.process.as_ref().is_some_and(|process| process.requests.is_empty())
            });
        if !quiet || pair.node(0).disk.live() == pair.node(1).disk.live() {
            return Ok(());
        }
        let leads = |node: usize| {
            let process = pair.process(node).expect("both run");
            process.replica.status(pair.now).peers[0].state == "current"
        };
        if leads(0) || leads(1) {
            return Err("replicas at rest differ, and both are members".into());
        }
        Ok(())
    }
}
