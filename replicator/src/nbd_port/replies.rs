//! The answers of the core on their way to the clients: replies, slices put together, counters.

use nbd_frontend::reply::{Extent, WireError};
use replicator_core::{ClientError, RequestId, Time};

use super::{Answer, Kind, Life, NbdPort};
use crate::data_loop::Io;

impl NbdPort {
    /// The map of a range that a client asked for.
    pub fn set_map(&mut self, request: RequestId, map: Vec<(u64, bool)>) {
        let open = self.open_request(request);
        self.requests[open].map = map;
    }

    /// The core answers a request.
    pub fn answer(&mut self, io: &mut Io, request: RequestId, result: Result<(), ClientError>) {
        let index = self.open_request(request);
        let open = &mut self.requests[index];
        open.is_open = false;
        open.generation = open.generation.wrapping_add(1);
        let c = open.connection;
        let answer = Answer {
            kind: open.kind,
            cookie: open.cookie,
            range: open.range,
            buf: open.buf.take(),
            map: std::mem::take(&mut open.map),
            result,
        };
        count(io, &answer, open.began);
        self.free_requests.push(index as u32);
        self.in_core -= 1;
        let connection = &mut self.connections[c as usize];
        connection.in_core -= 1;
        if connection.life == Life::Dead {
            if let Some(buf) = answer.buf {
                io.pool.release(buf);
            }
            if let Kind::WriteSlice { sliced } = answer.kind {
                self.slice_written(sliced, answer.result);
            }
            return self.vacate(c);
        }
        match answer.kind {
            Kind::ReadSlice => self.read_slice_done(io, c, answer),
            _ if connection.read.is_some_and(|read| read.is_exclusive) => {
                connection.behind_read.push(answer);
            }
            _ => self.reply(io, c, answer),
        }
        if self.connections[c as usize].life == Life::Draining {
            self.drain(io, c);
        }
    }

    /// Sends the reply to a request that came back.
    fn reply(&mut self, io: &mut Io, c: u32, answer: Answer) {
        let Answer { kind, cookie, range, buf, map, mut result } = answer;
        if let Kind::WriteSlice { sliced } = kind {
            let Some(whole) = self.slice_written(sliced, result) else {
                io.pool.release(buf.expect("a slice of a write has a buffer"));
                return;
            };
            result = whole;
        }
        let block_bytes = self.block_bytes;
        let connection = &mut self.connections[c as usize];
        let replies = connection.replies;
        let out = connection.outbox.add();
        match (result, kind, buf) {
            (Err(error), ..) => {
                let (error, text) = wire_error(error);
                out.put_header(|out| replies.error(cookie, error, text, out));
                if let Some(buf) = buf {
                    io.pool.release(buf);
                }
            }
            (Ok(()), Kind::Read { df }, Some(buf)) => {
                let len = range.length as u32;
                let mut reply = replies.read(cookie, range.start, len, df);
                out.put_header(|out| reply.data(len, out));
                let lead = (range.start % block_bytes) as usize;
                out.put_pooled(buf, lead..lead + len as usize);
            }
            (Ok(()), Kind::Map { req_one }, _) => {
                let extents = map.iter().map(|&(len, hole)| Extent { len, hole, zero: hole });
                let len = range.length as u32;
                out.put_header(|out| replies.block_status(cookie, len, req_one, extents, out));
            }
            (Ok(()), _, buf) => {
                out.put_header(|out| replies.done(cookie, out));
                if let Some(buf) = buf {
                    io.pool.release(buf);
                }
            }
        }
        self.queue_send(c);
    }

    fn read_slice_done(&mut self, io: &mut Io, c: u32, answer: Answer) {
        let block_bytes = self.block_bytes;
        let connection = &mut self.connections[c as usize];
        let read = connection.read.as_mut().expect("a large read");
        let buf = answer.buf.expect("a slice of a read has a buffer");
        let out = connection.outbox.add();
        read.is_in_core = false;
        let is_over = match answer.result {
            Ok(()) => {
                let len = answer.range.length as u32;
                out.put_header(|out| read.reply.data(len, out));
                let lead = (answer.range.start % block_bytes) as usize;
                out.put_pooled(buf, lead..lead + len as usize);
                read.is_exclusive = !read.reply.may_fail_late();
                read.reply.is_complete()
            }
            Err(error) => {
                io.pool.release(buf);
                let (error, text) = wire_error(error);
                let reply = read.reply;
                let mut told = Ok(());
                out.put_header(|out| told = reply.fail(error, text, out));
                if told.is_err() {
                    // The data were promised; nothing but the end of the stream tells otherwise.
                    return self.kill(io, c);
                }
                true
            }
        };
        self.queue_send(c);
        if is_over {
            let connection = &mut self.connections[c as usize];
            connection.read = None;
            for answer in std::mem::take(&mut connection.behind_read) {
                self.reply(io, c, answer);
            }
        }
        if self.connections[c as usize].life == Life::Draining && !is_over {
            // The device goes away in the middle of the answer.
            return self.kill(io, c);
        }
        self.advance(io, c, false);
    }

    /// A slice of a write came back; the result of the whole write when this was the last.
    fn slice_written(
        &mut self,
        sliced: u32,
        result: Result<(), ClientError>,
    ) -> Option<Result<(), ClientError>> {
        let write = self.writes[sliced as usize].as_mut().expect("an open write");
        write.open -= 1;
        write.result = write.result.and(result);
        let write = *write;
        if write.open > 0 || !write.is_received {
            return None;
        }
        self.writes[sliced as usize] = None;
        Some(write.result)
    }

    fn open_request(&self, request: RequestId) -> usize {
        let index = request.0 as u32 as usize;
        let open = &self.requests[index];
        assert!(
            open.is_open && open.generation == (request.0 >> 32) as u32,
            "the core named request {request:?}, which is not open"
        );
        index
    }
}

fn wire_error(error: ClientError) -> (WireError, &'static str) {
    match error {
        ClientError::Io => (WireError::Io, "the disk failed and no other replica can help"),
        ClientError::NoSpace => (WireError::NoSpace, "the backing file system is full"),
        ClientError::Shutdown => (WireError::Shutdown, "this node no longer serves the device"),
    }
}

fn count(io: &mut Io, answer: &Answer, began: Time) {
    let took = io.now.since(began);
    let counters = &mut io.counters;
    if answer.result.is_err() {
        counters.errors += 1;
        return;
    }
    match answer.kind {
        Kind::Read { .. } | Kind::ReadSlice => {
            counters.reads += 1;
            counters.read_bytes += answer.range.length;
            counters.client_read.record(took);
        }
        Kind::Write | Kind::WriteSlice { .. } => {
            counters.writes += 1;
            counters.written_bytes += answer.range.length;
            counters.client_write.record(took);
        }
        Kind::Flush => {
            counters.flushes += 1;
            counters.client_flush.record(took);
        }
        Kind::Zero => {
            counters.zeroes += 1;
            counters.client_zero.record(took);
        }
        Kind::Map { .. } => {}
    }
}
