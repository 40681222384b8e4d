//! Steps of the cores: a process is told a fact or a time-out, and its orders are carried out.

use std::mem;

use replicator_core::wire::Message;
use replicator_core::{Effect, Effects, Input, Note};

use crate::failure::Kind;
use crate::world::{Event, PEER, World};

impl World {
    /// Tells a process a fact, now or when it is no longer paused.
    pub fn fact(&mut self, node: usize, life: u64, input: Box<Input>) {
        if !self.runs(node, life) {
            return;
        }
        if self.nodes[node].paused_until > self.now {
            let delay = self.nodes[node].paused_until - self.now;
            self.after(delay, Event::Fact { node, life, input });
            return;
        }
        if let Input::ClientRequested { request, .. } = *input
            && !self.request_finds_its_device(node, request.0)
        {
            return;
        }
        self.step(node, *input);
    }

    pub(crate) fn step(&mut self, node: usize, input: Input) {
        if self.stand_in.is_some() {
            return self.step_stand_in(node, input);
        }
        if !matches!(input, Input::LeaseChanged { .. }) {
            self.tell_lease(node);
        }
        let is_covered = self.cluster.is_none() && self.fencing.is_none();
        if is_covered {
            self.cover_input(node, &input);
        }
        self.flaps_before(node, &input);
        let local = self.local(node);
        let process = self.nodes[node].process.as_mut().expect("a process");
        let mut effects = mem::take(&mut self.effects);
        self.tally.steps += 1;
        if self.tells_steps && !matches!(input, Input::TimePassed) {
            println!("{:>12.6}   {} <- {:?}", self.now as f64 / 1e9, self.nodes[node].name, input);
        }
        process.knows_register |= matches!(input, Input::RegisterLearned(_));
        process.view.told(&input);
        process.replica.step(local, input, &mut effects);
        process.replica.check_invariants();
        self.flaps_after(node, &effects);
        if self.cluster.is_none() {
            self.watch_orders(node, &effects);
        }
        if is_covered {
            self.cover_step(node, &effects);
        }
        self.carry_out(node, &mut effects);
        self.effects = effects;
        self.set_timer(node);
    }

    pub(crate) fn set_timer(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let Some(deadline) = process.replica.next_deadline() else { return };
        let (life, timer_at) = (process.life, process.timer_at);
        let at = self.nodes[node].clock.moment_of(deadline).max(self.now);
        if timer_at <= self.now || at < timer_at {
            self.nodes[node].process.as_mut().expect("a process").timer_at = at.max(self.now + 1);
            let delay = at.max(self.now + 1) - self.now;
            self.after(delay, Event::Timer { node, life });
        }
    }

    pub(super) fn timer(&mut self, node: usize, life: u64) {
        if !self.runs(node, life) {
            return;
        }
        if self.nodes[node].paused_until > self.now {
            let delay = self.nodes[node].paused_until - self.now;
            self.after(delay, Event::Timer { node, life });
            return;
        }
        let process = self.nodes[node].process.as_ref().expect("a process");
        if process.timer_at > self.now {
            return;
        }
        let local = self.local(node);
        if process.replica.next_deadline().is_some_and(|deadline| deadline <= local) {
            self.step(node, Input::TimePassed);
            let spins = self.nodes[node].process.as_ref().and_then(|process| {
                process.replica.next_deadline().filter(|&deadline| deadline <= local)
            });
            if let Some(deadline) = spins {
                let name = self.nodes[node].name;
                let text = format!("{name} spins: deadline {deadline:?} stays past at {local:?}");
                self.fail(Kind::Liveness, "(e)", text);
            }
        } else {
            self.set_timer(node);
        }
    }

    /// Carries out the orders of one step. Disk operations start in any order (effects of a step
    /// are unordered); frames of a session keep theirs; buffers are freed last.
    pub(super) fn carry_out(&mut self, node: usize, effects: &mut Effects) {
        let mut disk = Vec::new();
        let mut releases = Vec::new();
        let mut stopped = false;
        for effect in effects.drain(..) {
            if self.tells_steps {
                println!(
                    "{:>12.6}     {} -> {}",
                    self.now as f64 / 1e9,
                    self.nodes[node].name,
                    short(&effect)
                );
            }
            match effect {
                Effect::SendPeer { peer, session, message, data } => {
                    assert_eq!(peer, PEER);
                    if matches!(message, Message::Hello(_)) {
                        self.check_register_known(node);
                    }
                    self.send(node, session, message, data);
                }
                Effect::ClosePeer { session, retry, .. } => self.close(node, session, retry),
                Effect::ReplyClient { request, result } => self.reply(node, request.0, result),
                Effect::ReleaseBuf { buf } => releases.push(buf),
                Effect::AnswerOperator { ticket, result } => {
                    if !self.job_answered(node, ticket.0, &result)
                        && !self.fencing_answered(node, ticket.0, &result)
                        && !self.growth_answered(ticket.0, &result)
                    {
                        self.operator_answered(node, ticket.0, result);
                    }
                }
                Effect::OpenDevice { tenure, size_bytes } => {
                    self.device_opened(node, tenure, size_bytes);
                }
                Effect::ResizeDevice { size_bytes } => self.device_grew(node, size_bytes),
                Effect::CloseDevice { .. } => {
                    self.nodes[node].process.as_mut().expect("a process").device = None;
                }
                Effect::Note(note) => self.noted(node, &note),
                Effect::Stopped => stopped = true,
                proposal @ Effect::Propose { .. } => self.proposed(node, proposal),
                other => disk.push(other),
            }
        }
        while !disk.is_empty() {
            let at = self.draw.below(disk.len() as u64) as usize;
            let effect = disk.swap_remove(at);
            self.start_disk(node, effect);
        }
        for buf in releases {
            self.nodes[node].process.as_mut().expect("a process").buffers.release(buf);
        }
        if stopped {
            self.stopped(node);
        }
    }

    fn noted(&mut self, node: usize, note: &Note) {
        match note {
            Note::ResyncFinished { .. } => self.tally.resyncs += 1,
            Note::Committed { what, generation } => {
                self.check_copies(node, what, *generation);
                self.committed(node, what, *generation);
                self.check_who_left(node, what);
            }
            // Late words of a session from before are no part in anything where neither leads.
            Note::PeerJoined { relation, .. } if *relation != "idle" => self.check_diverged(node),
            _ => {}
        }
        self.check_impostor(node, note);
        self.check_verify(node, note);
        self.occasions_of_note(node, note);
        self.occasions_of_growth(node, note);
        self.spring_at_note(note);
    }

    /// R14: nothing is said to a peer before a majority was asked for the newest state.
    fn check_register_known(&mut self, node: usize) {
        let process = self.nodes[node].process.as_ref().expect("a process");
        if self.cluster.is_some() && !process.knows_register {
            let text = format!("{} meets its peer without the register", self.nodes[node].name);
            self.fail(Kind::Safety, "R14", text);
        }
    }

    /// R2c, R3, R6c: before these commits the own disk (at a release, every member's) is flushed,
    /// and nothing is acknowledged between that flush and the commit. So all that is acknowledged
    /// is durable now, as after a client's flush.
    fn committed(&mut self, node: usize, what: &str, generation: u64) {
        if what == "the office was taken" {
            self.tell_history_of_a_wait(node);
        }
        let flushed = ["the office was taken", "a member left the in-sync set"].contains(&what)
            || what == "the office was released";
        // Who stood still hears late of its own release, when a later office has written already.
        let is_late = generation < self.checkers.newest_office.1;
        if flushed && !is_late && !self.nodes[node].flush_failed {
            self.clients.covered_by_a_flush();
        }
    }

    fn device_opened(&mut self, node: usize, tenure: u64, size_bytes: u64) {
        self.tally.tenures += 1;
        self.rot_ends(node);
        self.nodes[node].process.as_mut().expect("a process").size_bytes = size_bytes;
        if self.device_opened_after_going_back(node, tenure) {
            let office = self.checkers.offices;
            self.nodes[node].process.as_mut().expect("a process").device = Some(office);
            return;
        }
        if self.cluster.is_some() {
            self.note_office_opened(node);
        }
        let other = &self.nodes[1 - node];
        // In a cluster an old one may wait for its lease with the device open (L4).
        if self.cluster.is_none()
            && other.process.as_ref().is_some_and(|process| process.device.is_some())
        {
            let text = format!("both nodes serve; {} took tenure {tenure}", self.nodes[node].name);
            self.fail(Kind::Safety, "R6", text);
        }
        let lineage = self.superblock(node).register.basis.lineage;
        let newest = self.checkers.newest_office;
        let is_past = (lineage, tenure) < newest;
        if is_past && self.cluster.is_some() && self.may_live_in_the_past(node) {
            // R5e: it was asleep when a later office began; what it answers is judged by that.
            let office = self.checkers.offices - 1;
            self.nodes[node].process.as_mut().expect("a process").device = Some(office);
            return;
        }
        if is_past {
            let text = format!("tenure {tenure} of lineage {lineage} after {newest:?}");
            self.fail(Kind::Safety, "R2", text);
        }
        if (lineage, tenure) > newest {
            self.checkers.newest_office = (lineage, tenure);
            self.checkers.offices += 1;
        }
        let office = self.checkers.offices;
        self.nodes[node].process.as_mut().expect("a process").device = Some(office);
        self.clients.history.tenure_changed(office);
        self.device_has(node, size_bytes);
        self.occasions_of_office(node);
        if self.cluster.is_some() {
            self.check_one_serves();
        }
    }
}

fn short(effect: &Effect) -> String {
    match effect {
        Effect::WriteMeta { op, offset, bytes } => {
            format!("WriteMeta {op:?} at {offset}, {} bytes", bytes.len())
        }
        other => format!("{other:?}"),
    }
}
