//! The form of what is said of a verify.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::{FrameError, Header, Message, Reader, kind};
use crate::block::{BlockDigest, ByteRange};
use crate::command::{Answer, Refusal};
use crate::limits::VERIFY_RUNS_MAX;
use crate::verify::Findings;
use crate::verify_news::{VerifyNews, refusal};

const BEGAN: u8 = 1;
const COMPARED: u8 = 2;
const ENDED: u8 = 3;
const REPAIRED: u8 = 4;
const FLAG_REPAIR: u16 = 1;
const FLAG_CANCEL: u16 = 2;
const FLAG_BROKEN: u16 = 2;
const DONE: u16 = 1;
const ALREADY: u16 = 2;
const REFUSED: u16 = 3;

impl Header {
    pub(super) fn put_digests(&mut self, seq: u64, digests: &[BlockDigest], out: &mut Vec<u8>) {
        (self.kind, self.seq) = (kind::VERIFY_DIGESTS, seq);
        digests.iter().for_each(|digest| out.extend_from_slice(digest));
    }

    pub(super) fn take_digests(&self, input: &mut Reader<'_>) -> Result<Message, FrameError> {
        let mut digests = Vec::with_capacity(input.bytes.len() / size_of::<BlockDigest>());
        while !input.bytes.is_empty() {
            digests.push(input.take()?);
        }
        Ok(Message::VerifyDigests { seq: self.seq, digests })
    }

    pub(super) fn put_wanted(&mut self, repair: bool, cancel: bool) {
        self.kind = kind::VERIFY_WANTED;
        self.flags = (u16::from(repair) * FLAG_REPAIR) | (u16::from(cancel) * FLAG_CANCEL);
    }

    pub(super) fn take_wanted(&self) -> Message {
        let (repair, cancel) = (self.flags & FLAG_REPAIR != 0, self.flags & FLAG_CANCEL != 0);
        Message::VerifyWanted { repair, cancel }
    }

    pub(super) fn put_answer(&mut self, result: &Result<Answer, Box<Refusal>>, out: &mut Vec<u8>) {
        self.kind = kind::VERIFY_ANSWER;
        self.flags = match result {
            Ok(Answer::Done) => DONE,
            Ok(Answer::Already) => ALREADY,
            Err(refused) => {
                for text in [refused.code, &refused.why, &refused.next] {
                    put_text(text, out);
                }
                REFUSED
            }
        };
    }

    pub(super) fn take_answer(&self, input: &mut Reader<'_>) -> Result<Message, FrameError> {
        Ok(Message::VerifyAnswer(match self.flags {
            DONE => Ok(Answer::Done),
            ALREADY => Ok(Answer::Already),
            REFUSED => {
                let (code, why, next) = (take_text(input)?, take_text(input)?, take_text(input)?);
                Err(Box::new(refusal(&code, why, next)))
            }
            _ => return Err(FrameError::Payload),
        }))
    }

    pub(super) fn put_news(&mut self, copy: &str, news: &VerifyNews, out: &mut Vec<u8>) {
        self.kind = kind::VERIFY_NEWS;
        put_text(copy, out);
        match news {
            VerifyNews::Began { bytes, repair } => {
                out.push(BEGAN);
                (self.length, self.flags) = (*bytes, u16::from(*repair) * FLAG_REPAIR);
            }
            VerifyNews::Compared(findings) => {
                out.push(COMPARED);
                put_findings(findings, out);
            }
            VerifyNews::Ended { broken, findings, repairs } => {
                out.push(ENDED);
                self.flags = (u16::from(*repairs) * FLAG_REPAIR)
                    | (u16::from(broken.is_some()) * FLAG_BROKEN);
                put_findings(findings, out);
                put_text(broken.as_deref().unwrap_or_default(), out);
            }
            VerifyNews::Repaired { bytes } => {
                out.push(REPAIRED);
                self.length = *bytes;
            }
        }
    }

    pub(super) fn take_news(&self, input: &mut Reader<'_>) -> Result<Message, FrameError> {
        let copy = take_text(input)?.into_boxed_str();
        let has_repair = self.flags & FLAG_REPAIR != 0;
        let news = match input.u8()? {
            BEGAN => VerifyNews::Began { bytes: self.length, repair: has_repair },
            COMPARED => VerifyNews::Compared(Box::new(take_findings(input)?)),
            ENDED => {
                let findings = Box::new(take_findings(input)?);
                let why = take_text(input)?.into_boxed_str();
                let broken = (self.flags & FLAG_BROKEN != 0).then_some(why);
                VerifyNews::Ended { broken, findings, repairs: has_repair }
            }
            REPAIRED => VerifyNews::Repaired { bytes: self.length },
            _ => return Err(FrameError::Payload),
        };
        Ok(Message::VerifyNews { copy, news })
    }
}

fn put_findings(findings: &Findings, out: &mut Vec<u8>) {
    for number in [
        findings.checked_bytes,
        findings.differing_blocks,
        findings.unreadable_here_bytes,
        findings.unreadable_there_bytes,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for runs in [&findings.differing, &findings.unreadable] {
        out.push(runs.len() as u8);
        for run in runs {
            out.extend_from_slice(&run.start.to_le_bytes());
            out.extend_from_slice(&run.length.to_le_bytes());
        }
    }
}

fn take_findings(input: &mut Reader<'_>) -> Result<Findings, FrameError> {
    Ok(Findings {
        checked_bytes: input.u64()?,
        differing_blocks: input.u64()?,
        unreadable_here_bytes: input.u64()?,
        unreadable_there_bytes: input.u64()?,
        differing: take_runs(input)?,
        unreadable: take_runs(input)?,
    })
}

fn take_runs(input: &mut Reader<'_>) -> Result<Vec<ByteRange>, FrameError> {
    let count = usize::from(input.u8()?);
    if count > VERIFY_RUNS_MAX {
        return Err(FrameError::Payload);
    }
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let (start, length) = (input.u64()?, input.u64()?);
        start.checked_add(length).ok_or(FrameError::Bounds)?;
        runs.push(ByteRange { start, length });
    }
    Ok(runs)
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    let bytes = &text.as_bytes()[..text.len().min(usize::from(u16::MAX / 8))];
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take_text(input: &mut Reader<'_>) -> Result<String, FrameError> {
    let length = usize::from(input.u16()?);
    Ok(String::from_utf8_lossy(input.slice(length)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{HEADER_BYTES, VERIFY_SINCE, encode};

    /// The version that a frame bears.
    fn version(message: &Message) -> u8 {
        let (header, _): ([u8; HEADER_BYTES], _) = encode(message, 0, 0);
        header[4]
    }

    #[test]
    fn a_peer_of_version_4_can_read_every_frame_that_it_knows() {
        let range = ByteRange::new(0, 4096);
        let old = [
            Message::Ping,
            Message::Write { tenure: 1, seq: 1, range, fua: true },
            Message::Echo { tenure: 1, seq: 1 },
            Message::Replicas(Vec::new()),
        ];
        assert!(old.iter().all(|message| version(message) == 4));
        let new = [
            Message::Verify { tenure: 1, seq: 1, range },
            Message::VerifyWanted { repair: true, cancel: false },
        ];
        assert!(new.iter().all(|message| version(message) == VERIFY_SINCE));
    }
}
