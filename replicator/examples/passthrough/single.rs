//! A stand-in for the replication core: one disk, no peers, no metadata. It shows what the data
//! loop alone costs, and lets its tests run without a replica.

use std::collections::HashMap;

use replicator::data_loop::Core;
use replicator_core::{
    Answer, ByteRange, ClientError, ClientRequest, DiskFailure, Effect, Effects, Input, OpId,
    RequestId, Status, Time,
};

/// Passes every request straight to the disk.
#[derive(Default)]
pub struct Single {
    block_bytes: u64,
    can_punch: bool,
    next_op: u64,
    started: bool,
    open: HashMap<OpId, Open>,
}

/// What happens when a disk operation is done.
enum Open {
    Reply(RequestId),
    Write { request: RequestId, range: ByteRange, buf: replicator_core::BufId, fua: bool },
    Flush(RequestId),
}

impl Single {
    /// For a disk with these blocks.
    pub fn new(block_bytes: u32, can_punch: bool) -> Self {
        Self { block_bytes: u64::from(block_bytes), can_punch, ..Self::default() }
    }

    fn op(&mut self, then: Open) -> OpId {
        self.next_op += 1;
        self.open.insert(OpId(self.next_op), then);
        OpId(self.next_op)
    }

    fn asked(&mut self, request: RequestId, what: ClientRequest, effects: &mut Effects) {
        match what {
            ClientRequest::Read { range, buf } => {
                let op = self.op(Open::Reply(request));
                let range = range.align_out(self.block_bytes);
                effects.push(Effect::ReadDisk { op, range, buf });
            }
            ClientRequest::Write { range, buf, fua } => {
                let aligned = range.align_out(self.block_bytes);
                if aligned == range {
                    let op = self.op(after_write(request, fua));
                    effects.push(Effect::WriteDisk { op, range, buf });
                } else {
                    let op = self.op(Open::Write { request, range: aligned, buf, fua });
                    effects.push(Effect::ReadEdges { op, wanted: range, aligned, buf });
                }
            }
            ClientRequest::Flush => {
                let op = self.op(Open::Reply(request));
                effects.push(Effect::FlushDisk { op });
            }
            ClientRequest::Trim { range, fua } if self.can_punch => {
                self.zero(request, range, true, fua, effects);
            }
            ClientRequest::Trim { .. } => {
                effects.push(Effect::ReplyClient { request, result: Ok(()) });
            }
            ClientRequest::WriteZeroes { range, fua, may_punch } => {
                self.zero(request, range, may_punch && self.can_punch, fua, effects);
            }
            ClientRequest::Map { range } => {
                let op = self.op(Open::Reply(request));
                effects.push(Effect::MapDisk { op, request, range });
            }
        }
    }

    /// Whole blocks only; the exports of this stand-in allow nothing else.
    fn zero(
        &mut self,
        request: RequestId,
        range: ByteRange,
        may_punch: bool,
        fua: bool,
        effects: &mut Effects,
    ) {
        let op = self.op(after_write(request, fua));
        let range = range.align_in(self.block_bytes);
        effects.push(Effect::ZeroDisk { op, range, may_punch });
    }
}

fn after_write(request: RequestId, fua: bool) -> Open {
    if fua { Open::Flush(request) } else { Open::Reply(request) }
}

impl Core for Single {
    fn step(&mut self, _now: Time, input: Input, effects: &mut Effects) {
        match input {
            Input::ClientRequested { request, what } => self.asked(request, what, effects),
            Input::DiskDone { op, result } => {
                let then = self.open.remove(&op).expect("an operation ends once");
                match (then, result) {
                    (Open::Reply(request), Ok(_)) => {
                        effects.push(Effect::ReplyClient { request, result: Ok(()) });
                    }
                    (Open::Write { request, range, buf, fua }, Ok(_)) => {
                        let op = self.op(after_write(request, fua));
                        effects.push(Effect::WriteDisk { op, range, buf });
                    }
                    (Open::Flush(request), Ok(_)) => {
                        let op = self.op(Open::Reply(request));
                        effects.push(Effect::FlushDisk { op });
                    }
                    (
                        Open::Reply(request) | Open::Write { request, .. } | Open::Flush(request),
                        Err(failure),
                    ) => {
                        let error = match failure {
                            DiskFailure::Io(_) => ClientError::Io,
                            DiskFailure::NoSpace => ClientError::NoSpace,
                        };
                        effects.push(Effect::ReplyClient { request, result: Err(error) });
                    }
                }
            }
            Input::TimePassed if !self.started => {
                self.started = true;
                // Its clients know the size from their negotiation.
                effects.push(Effect::OpenDevice { tenure: 1, size_bytes: 0 });
            }
            Input::Ordered { ticket, .. } => {
                effects.push(Effect::CloseDevice { forced: false });
                effects.push(Effect::AnswerOperator { ticket, result: Ok(Answer::Done) });
                effects.push(Effect::Stopped);
            }
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
        Status { role: "primary", has_disk: true, requests: self.open.len(), ..Status::default() }
    }
}
