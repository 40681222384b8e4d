//! What all connections share behind one lock: checker, journal, requests in flight, and counts.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use history::{Checker, Seen, Violation};

use crate::journal::{Journal, Layout, Past, Record};
use crate::wire::Stream;

/// What the result reports.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    pub acked_writes: u64,
    pub acked_flushes: u64,
    pub reads: u64,
    pub unknown_writes: u64,
    pub unanswered_reads: u64,
    pub unanswered_flushes: u64,
    /// Replies with an error.
    pub errors: u64,
    pub connections_lost: u64,
    pub tenure_changes: u64,
    pub longest_pause: Duration,
    pub first_ack_unix_ms: u64,
    pub last_ack_unix_ms: u64,
    pub interruptions: Vec<Interruption>,
}

/// A loss of connections, and the acknowledgements around it.
#[derive(Debug, Clone, Copy)]
pub struct Interruption {
    pub lost_unix_ms: u64,
    pub last_ack_before_unix_ms: u64,
    /// `None` when the run ended first.
    pub first_ack_after_unix_ms: Option<u64>,
}

/// A request in flight, by what its reply needs.
#[derive(Debug, Clone)]
pub enum Pending {
    Write,
    Flush,
    Read(Range<u64>),
}

#[derive(Debug)]
struct InFlight {
    session: u64,
    pending: Pending,
}

/// The shared state.
#[derive(Debug)]
pub struct Engine {
    pub layout: Layout,
    checker: Checker,
    journal: Journal,
    next_id: u64,
    in_flight: HashMap<u64, InFlight>,
    sessions: HashMap<u64, Stream>,
    next_session: u64,
    current_uri: Option<usize>,
    last_ack: Option<Instant>,
    pub counts: Counts,
    pub violations: Vec<Violation>,
}

impl Engine {
    /// Goes on from a journal's past.
    pub fn new(journal: Journal, past: Past) -> Self {
        let Past { layout, checker, next_id, violations } = past;
        Engine {
            layout,
            checker,
            journal,
            next_id,
            in_flight: HashMap::new(),
            sessions: HashMap::new(),
            next_session: 1,
            current_uri: None,
            last_ack: None,
            counts: Counts::default(),
            violations,
        }
    }

    /// Why nothing more may be sent, if so.
    pub fn journal_failure(&self) -> Option<String> {
        self.journal.failure().map(|error| format!("the journal cannot be written: {error}"))
    }

    /// Tells journal and checker of something. False when the journal fails.
    pub fn tell(&mut self, record: &Record) -> bool {
        let written = self.journal.add(record);
        let violations = record.apply(&mut self.checker);
        self.violations.extend(violations);
        written
    }

    /// Hands everything to the kernel.
    pub fn finish(&mut self) {
        self.journal.write_out();
    }

    /// A connection to the server at position `uri` of the list is up. A change to another server
    /// is a take-over: every connection to the earlier one ends first.
    pub fn session_begins(&mut self, uri: usize, stream: Stream) -> u64 {
        if self.current_uri.is_some_and(|current| current != uri) {
            let old: Vec<u64> = self.sessions.keys().copied().collect();
            for session in old {
                self.session_ends(session, true);
            }
            self.tell(&Record::TenureChanged);
            self.counts.tenure_changes += 1;
        }
        self.current_uri = Some(uri);
        let session = self.next_session;
        self.next_session += 1;
        self.sessions.insert(session, stream);
        session
    }

    /// The server that serves at present, as a position in the list.
    pub fn current_uri(&self) -> usize {
        self.current_uri.unwrap_or(0)
    }

    /// A connection is gone: what was in flight on it is of unknown outcome.
    pub fn session_ends(&mut self, session: u64, was_lost: bool) {
        let Some(stream) = self.sessions.remove(&session) else { return };
        stream.end();
        let mut left: Vec<u64> = self
            .in_flight
            .iter()
            .filter_map(|(id, request)| (request.session == session).then_some(*id))
            .collect();
        left.sort_unstable();
        for id in left {
            self.failed(id);
        }
        if was_lost {
            self.counts.connections_lost += 1;
            let open = self.counts.interruptions.last();
            if open.is_none_or(|last| last.first_ack_after_unix_ms.is_some()) {
                self.counts.interruptions.push(Interruption {
                    lost_unix_ms: unix_ms(),
                    last_ack_before_unix_ms: self.counts.last_ack_unix_ms,
                    first_ack_after_unix_ms: None,
                });
            }
        }
    }

    /// The id that the next request gets.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Starts a request of `session`. `None` when the session is over or the journal fails.
    pub fn start(&mut self, session: u64, make: impl FnOnce(u64) -> Record) -> Option<Record> {
        if !self.sessions.contains_key(&session) {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        let record = make(id);
        let pending = match &record {
            Record::Flush { .. } => Pending::Flush,
            Record::Read { units, .. } => Pending::Read(units.clone()),
            _ => Pending::Write,
        };
        self.in_flight.insert(id, InFlight { session, pending });
        self.tell(&record).then_some(record)
    }

    /// The request that a reply names, if it is still awaited.
    pub fn pending(&self, id: u64) -> Option<Pending> {
        self.in_flight.get(&id).map(|request| request.pending.clone())
    }

    /// A good reply came, with data if it was a read.
    pub fn done(&mut self, id: u64, seen: Vec<Seen>) {
        let Some(request) = self.in_flight.remove(&id) else { return };
        match request.pending {
            Pending::Read(_) => {
                self.counts.reads += 1;
                self.tell(&Record::Seen { id, seen });
            }
            Pending::Flush => {
                self.counts.acked_flushes += 1;
                self.note_ack();
                self.tell(&Record::Flushed { id });
            }
            Pending::Write => {
                self.counts.acked_writes += 1;
                self.note_ack();
                self.tell(&Record::Acked { id });
            }
        }
    }

    /// An error reply came, or the connection is gone.
    pub fn failed(&mut self, id: u64) {
        let Some(request) = self.in_flight.remove(&id) else { return };
        match request.pending {
            Pending::Read(_) => {
                self.counts.unanswered_reads += 1;
                self.tell(&Record::NotRead { id });
            }
            Pending::Flush => {
                self.counts.unanswered_flushes += 1;
                self.tell(&Record::NotFlushed { id });
            }
            Pending::Write => {
                self.counts.unknown_writes += 1;
                self.tell(&Record::Unknown { id });
            }
        }
    }

    /// All writes that touched a unit, oldest first.
    pub fn unit_history(&self, unit: u64) -> Vec<history::WriteReport> {
        self.checker.unit_history(unit)
    }

    fn note_ack(&mut self) {
        let (now, ms) = (Instant::now(), unix_ms());
        if let Some(last) = self.last_ack {
            self.counts.longest_pause = self.counts.longest_pause.max(now - last);
        } else {
            self.counts.first_ack_unix_ms = ms;
        }
        self.last_ack = Some(now);
        self.counts.last_ack_unix_ms = ms;
        if let Some(open) = self.counts.interruptions.last_mut() {
            open.first_ack_after_unix_ms.get_or_insert(ms);
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |duration| duration.as_millis() as u64)
}
