//! A verify ordered and followed from any node: the order goes to the primary and its answer comes
//! back, and the primary tells the others how far it is and what it found, so that every node knows
//! it, whoever is primary next.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::block::{PeerIndex, Ticket};
use crate::command::{Answer, REFUSAL_CODES, Refusal};
use crate::effect::{Effect, Effects};
use crate::limits::PEERS_MAX;
use crate::note::Note;
use crate::replica::Replica;
use crate::status::VerifyStatus;
use crate::verify::{Findings, too_old};
use crate::wire::Message;

/// What the primary tells of a verify.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum VerifyNews {
    /// It began.
    Began {
        /// What is to be compared.
        bytes: u64,
        /// Whether differences will be mended.
        repair: bool,
    },
    /// So far it has found this.
    Compared(Box<Findings>),
    /// It ended.
    Ended {
        /// Why before it was through.
        broken: Option<Box<str>>,
        /// What it found.
        findings: Box<Findings>,
        /// Whether what differs is copied again now.
        repairs: bool,
    },
    /// The copy is mended, and in sync again.
    Repaired {
        /// Bytes that were copied again.
        bytes: u64,
    },
}

impl Replica {
    // ------------------------------------------------------------------ orders

    /// An operator's order to begin a verify (and whether to repair), or to end it: carried out
    /// here, or by the primary that is followed.
    pub(crate) fn order_verify(
        &mut self,
        ticket: Ticket,
        repair: Option<bool>,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        let Some(leader) = self.following.as_mut().filter(|leader| leader.ready) else {
            return self.carry_out_verify(repair, effects).map(Some);
        };
        let (peer, at) = (leader.peer, usize::from(leader.peer.0));
        if leader.verify_asked.is_some() {
            return Err(crate::office::busy("waiting for the primary's answer to the same"));
        }
        if !self.peers[at].can_verify() {
            return Err(too_old(&self.peers[at]));
        }
        leader.verify_asked = Some(ticket);
        let (repair, cancel) = (repair == Some(true), repair.is_none());
        self.send(peer, Message::VerifyWanted { repair, cancel }, None, effects);
        Ok(None)
    }

    fn carry_out_verify(
        &mut self,
        repair: Option<bool>,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        match repair {
            Some(repair) => self.verify(repair, effects),
            None => Ok(self.cancel_verify(effects)),
        }
    }

    /// A follower's operator wants it.
    pub(crate) fn verify_wanted(
        &mut self,
        at: usize,
        repair: bool,
        cancel: bool,
        effects: &mut Effects,
    ) {
        let peer = PeerIndex(at as u8);
        if !self.peers[at].is_led() {
            return self.misbehaved(peer, "it orders what only a follower may", effects);
        }
        let result = self.carry_out_verify((!cancel).then_some(repair), effects);
        let answer = Message::VerifyAnswer(result.map_err(Box::new));
        self.send(peer, answer, None, effects);
    }

    /// The primary's answer.
    pub(crate) fn verify_answered(
        &mut self,
        at: usize,
        result: Result<Answer, Box<Refusal>>,
        effects: &mut Effects,
    ) {
        let leads = self.leads_us(at);
        let ticket =
            self.following.as_mut().filter(|_| leads).and_then(|it| it.verify_asked.take());
        let Some(ticket) = ticket else {
            return self.misbehaved(PeerIndex(at as u8), "an answer to nothing", effects);
        };
        effects.push(Effect::AnswerOperator { ticket, result });
    }

    // ------------------------------------------------------------------ news

    /// Tells of the verify of a peer's copy: here, and to all that follow.
    pub(crate) fn tell_verify(&mut self, of: usize, news: VerifyNews, effects: &mut Effects) {
        let copy: Box<str> = self.peers[of].node.as_str().into();
        for at in 0..self.peers.len() {
            if self.peers[at].is_led() && self.peers[at].can_verify() {
                let message = Message::VerifyNews { copy: copy.clone(), news: news.clone() };
                self.send(PeerIndex(at as u8), message, None, effects);
            }
        }
        let with = self.config.node.clone();
        effects.extend(note(&copy, with, news).map(Effect::Note));
    }

    /// What the primary tells of a verify.
    pub(crate) fn verify_news_came(
        &mut self,
        at: usize,
        copy: Box<str>,
        news: VerifyNews,
        effects: &mut Effects,
    ) {
        let told = &mut self.peers[at].told;
        let known = told.iter().position(|it| *it.copy == *copy);
        let floods = known.is_none() && told.len() > PEERS_MAX;
        if !self.leads_us(at) || floods {
            return self.misbehaved(PeerIndex(at as u8), "news of a verify out of order", effects);
        }
        let told = &mut self.peers[at].told;
        match &news {
            VerifyNews::Began { bytes, repair } => {
                let began = VerifyStatus {
                    copy: copy.to_string(),
                    total_bytes: *bytes,
                    repair: *repair,
                    findings: Findings::default(),
                };
                match known {
                    Some(known) => told[known] = began,
                    None => told.push(began),
                }
            }
            VerifyNews::Compared(findings) => {
                if let Some(known) = known {
                    told[known].findings = (**findings).clone();
                }
            }
            VerifyNews::Ended { .. } | VerifyNews::Repaired { .. } => {
                told.retain(|it| *it.copy != *copy);
            }
        }
        let with = self.peers[at].node.clone();
        effects.extend(note(&copy, with, news).map(Effect::Note));
    }

    /// The session with the primary ends: what it does further is not known here.
    pub(crate) fn end_told_verifies(&mut self, at: usize, effects: &mut Effects) {
        for told in core::mem::take(&mut self.peers[at].told) {
            effects.push(Effect::Note(Note::VerifyEnded {
                copy: told.copy,
                with: self.peers[at].node.clone(),
                broken: Some("the connection to the primary was lost".into()),
                findings: Box::new(told.findings),
                repairs: false,
            }));
        }
        if let Some(ticket) = self.following.and_then(|leader| leader.verify_asked) {
            let refusal = Refusal {
                code: "peer_unreachable",
                rule: "",
                why: "the connection to the primary was lost before it answered".into(),
                next: "look at replctl status RESOURCE".into(),
            };
            effects.push(Effect::AnswerOperator { ticket, result: Err(Box::new(refusal)) });
        }
    }

    /// Verifies under way.
    pub(crate) fn verifies(&self) -> Vec<VerifyStatus> {
        let own = self.peers.iter().filter_map(|peer| {
            let verify = peer.verify.as_ref()?;
            Some(verify.status(peer.node.clone()))
        });
        own.chain(self.peers.iter().flat_map(|peer| peer.told.iter().cloned())).collect()
    }
}

/// What is for the record.
fn note(copy: &str, with: String, news: VerifyNews) -> Option<Note> {
    let copy = copy.to_string();
    Some(match news {
        VerifyNews::Began { bytes, repair } => Note::VerifyStarted { copy, with, bytes, repair },
        VerifyNews::Compared(_) => return None,
        VerifyNews::Ended { broken, findings, repairs } => {
            let broken = broken.map(String::from);
            Note::VerifyEnded { copy, with, broken, findings, repairs }
        }
        VerifyNews::Repaired { bytes } => Note::VerifyRepaired { copy, bytes },
    })
}

/// A refusal that came over the wire; its code is one of ours.
pub(crate) fn refusal(code: &str, why: String, next: String) -> Refusal {
    let known = REFUSAL_CODES.iter().copied().find(|known| *known == code);
    Refusal { code: known.unwrap_or("not_now"), rule: "", why, next }
}
