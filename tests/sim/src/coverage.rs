//! Which states of the core, transitions between them, inputs, orders, frames, refusals and
//! verdicts a seed reached. The lists are complete by construction: a new variant in the core does
//! not compile here before it is counted. What cannot happen by design is listed with the reason,
//! and happening is a failure.

mod impossible;
mod kinds;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::LazyLock;

use replicator_core::handshake::relation;
use replicator_core::observe::{
    Changing, Data, Following, Log, Office, Progress, Resync, Session, View,
};
use replicator_core::wire::{Hello, Message};
use replicator_core::{Effect, Input, SessionId};

use crate::failure::Kind;
use crate::world::World;
use kinds::{Seen, Table};

/// A list of things of one sort that may be reached.
struct Section {
    title: &'static str,
    names: Vec<String>,
    /// Why an entry cannot be reached.
    impossible: Vec<Option<&'static str>>,
    /// Where its counters begin.
    offset: usize,
}

/// All sections: the tables of kinds, the states, the transitions.
static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for table in Table::ALL {
        let names = table.names();
        let impossible = names.iter().map(|name| impossible::kind(table, name)).collect();
        all.push(Section { title: table.title(), names, impossible, offset: 0 });
    }
    all.push(states("roles", Office::ALL));
    all.push(states("sessions with the peer", Session::ALL));
    all.push(states("changes of the register", Changing::ALL));
    all.push(states("resyncs", Resync::ALL));
    all.push(states("following", Following::ALL));
    all.push(states("activity log", Log::ALL));
    all.push(states("own data", Data::ALL));
    all.push(states("progress of requests", Progress::ALL));
    all.push(moves("role", Office::ALL, impossible::office));
    all.push(moves("session", Session::ALL, impossible::session));
    all.push(moves("change", Changing::ALL, impossible::changing));
    all.push(moves("resync", Resync::ALL, impossible::resync));
    all.push(moves("following", Following::ALL, impossible::following));
    let mut offset = 0;
    for section in &mut all {
        section.offset = offset;
        offset += section.names.len();
    }
    all
});

/// The first section of states, and the first of transitions, in the order of [`SECTIONS`].
const STATES: usize = Table::ALL.len();
const MOVES: usize = STATES + 8;

fn states<S: Copy + Debug>(title: &'static str, all: &[S]) -> Section {
    let names: Vec<String> = all.iter().map(|state| format!("{state:?}")).collect();
    let impossible = names.iter().map(|name| impossible::state(name)).collect();
    Section { title, impossible, names, offset: 0 }
}

/// All ordered pairs; from a state to itself is no transition.
fn moves<S: Copy + PartialEq + Debug>(
    title: &'static str,
    all: &[S],
    impossible: fn(S, S) -> Option<&'static str>,
) -> Section {
    let pairs = || all.iter().flat_map(|&from| all.iter().map(move |&to| (from, to)));
    let why = |(from, to)| if from == to { Some("") } else { impossible(from, to) };
    Section {
        title,
        names: pairs().map(|(from, to)| format!("{from:?}->{to:?}")).collect(),
        impossible: pairs().map(why).collect(),
        offset: 0,
    }
}

fn title(number: usize, section: &Section) -> String {
    let sort = if number < MOVES { "" } else { "transitions of the " };
    format!("{sort}{}", section.title)
}

/// What was reached, and how often.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    counts: Vec<u64>,
}

impl Coverage {
    fn count(&mut self, section: usize, at: usize) {
        let at = SECTIONS[section].offset + at;
        if self.counts.len() <= at {
            let last = SECTIONS.last().expect("there are sections");
            self.counts.resize(last.offset + last.names.len(), 0);
        }
        self.counts[at] += 1;
    }

    /// Adds what another seed reached.
    pub fn add(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    /// For the pipe between a runner and its child; [`Coverage::set`] reads the numbers.
    pub fn line(&self) -> String {
        let words: Vec<String> = self.counts.iter().map(u64::to_string).collect();
        format!("coverage {}", words.join(" "))
    }

    /// Takes the numbers of a line.
    pub fn set(&mut self, numbers: &[u64]) {
        self.counts = numbers.to_vec();
    }

    /// How much was reached in all, and the names of what never was.
    pub fn print(&self) {
        let (mut reached, mut possible, mut impossible) = (0, 0, 0);
        let mut lines = Vec::new();
        for (number, section) in SECTIONS.iter().enumerate() {
            let mut never = Vec::new();
            for (at, name) in section.names.iter().enumerate() {
                match section.impossible[at] {
                    Some("") => {}
                    Some(_) => impossible += 1,
                    None if self.count_of(section, at) == 0 => never.push(name.as_str()),
                    None => reached += 1,
                }
            }
            possible += never.len();
            if !never.is_empty() {
                lines.push(format!("  {}: never {}", title(number, section), never.join(", ")));
            }
        }
        println!(
            "coverage: {reached} of {} states, transitions, frames, verdicts, answers ...; \
             {impossible} more are impossible, and were not reached",
            reached + possible,
        );
        lines.iter().for_each(|line| println!("{line}"));
    }

    fn count_of(&self, section: &Section, at: usize) -> u64 {
        self.counts.get(section.offset + at).copied().unwrap_or(0)
    }

    /// Prints how often everything was reached, and why the rest cannot be.
    pub fn print_all(&self) {
        for (number, section) in SECTIONS.iter().enumerate() {
            println!("{}", title(number, section));
            for (at, name) in section.names.iter().enumerate() {
                let count = self.count_of(section, at);
                match section.impossible[at] {
                    Some("") => {}
                    Some(why) => println!("  impossible  {name}: {why}"),
                    None => println!("  {count:10}  {name}"),
                }
            }
        }
    }
}

/// What has to be remembered of a process to see what it reaches.
#[derive(Debug, Default)]
pub struct Observed {
    life: u64,
    view: Option<View>,
    asked: BTreeMap<u64, usize>,
    ordered: BTreeMap<u64, usize>,
    said: Option<(SessionId, Box<Hello>)>,
    heard: Option<(SessionId, Box<Hello>)>,
}

impl World {
    /// A process is about to be told something.
    pub fn cover_input(&mut self, node: usize, input: &Input) {
        let life = self.nodes[node].lives;
        let observed = &mut self.observed[node];
        if observed.life != life {
            *observed = Observed { life, ..Observed::default() };
        }
        match input {
            Input::ClientRequested { request, what } => {
                observed.asked.insert(request.0, kinds::asked(what));
            }
            Input::Ordered { ticket, command } => {
                observed.ordered.insert(ticket.0, kinds::ordered(command));
            }
            Input::PeerSaid { session, message: Message::Hello(hello), .. } => {
                observed.heard = Some((*session, hello.clone()));
            }
            Input::PeerSaid { message: Message::Met, .. } => self.cover_verdict(node),
            _ => {}
        }
        for seen in kinds::input(input).into_iter().flatten() {
            self.saw(seen);
        }
    }

    /// A process was told something: this it orders, and so it is now.
    pub fn cover_step(&mut self, node: usize, effects: &[Effect]) {
        for effect in effects {
            match kinds::order(effect) {
                Ok(seen) => seen.into_iter().flatten().for_each(|seen| self.saw(seen)),
                Err(text) => self.fail(Kind::Safety, "coverage", text),
            }
            self.cover_answer(node, effect);
        }
        let replica = &self.nodes[node].process.as_ref().expect("a process").replica;
        let view = replica.view();
        for progress in replica.progress() {
            self.coverage.count(STATES + 7, progress as usize);
        }
        let Some(before) = self.observed[node].view.replace(view) else {
            return self.cover_first(view);
        };
        if before == view {
            return;
        }
        self.moved(0, Office::ALL.len(), before.office as usize, view.office as usize);
        self.moved(1, Session::ALL.len(), before.session as usize, view.session as usize);
        self.moved(2, Changing::ALL.len(), before.changing as usize, view.changing as usize);
        self.moved(3, Resync::ALL.len(), before.resync as usize, view.resync as usize);
        self.moved(4, Following::ALL.len(), before.following as usize, view.following as usize);
        for (state, before, now) in [
            (5, before.log as usize, view.log as usize),
            (6, before.data as usize, view.data as usize),
        ] {
            if before != now {
                self.coverage.count(STATES + state, now);
            }
        }
    }

    /// The states a process begins in.
    fn cover_first(&mut self, view: View) {
        let states = [
            view.office as usize,
            view.session as usize,
            view.changing as usize,
            view.resync as usize,
            view.following as usize,
            view.log as usize,
            view.data as usize,
        ];
        for (at, state) in states.into_iter().enumerate() {
            self.coverage.count(STATES + at, state);
        }
    }

    /// The answers to what was asked and ordered, and what greetings lead to.
    fn cover_answer(&mut self, node: usize, effect: &Effect) {
        let observed = &mut self.observed[node];
        match effect {
            Effect::ReplyClient { request, result } => {
                if let Some(asked) = observed.asked.remove(&request.0) {
                    self.saw(kinds::answer(asked, result));
                }
            }
            Effect::AnswerOperator { ticket, result } => {
                if let Some(ordered) = observed.ordered.remove(&ticket.0) {
                    self.saw(kinds::command_answer(ordered, result));
                }
            }
            Effect::SendPeer { session, message: Message::Hello(hello), .. } => {
                observed.said = Some((*session, hello.clone()));
            }
            _ => {}
        }
    }

    /// Both greetings of a session hold: what they lead to is a pure function.
    fn cover_verdict(&mut self, node: usize) {
        let observed = &self.observed[node];
        if let (Some((session, mine)), Some((same, theirs))) = (&observed.said, &observed.heard)
            && session == same
        {
            let verdict = kinds::verdict(&relation(mine, theirs));
            self.saw(verdict);
        }
    }

    fn saw(&mut self, (table, at): Seen) {
        self.reached(table as usize, at);
    }

    fn moved(&mut self, state: usize, states: usize, from: usize, to: usize) {
        if from != to {
            self.coverage.count(STATES + state, to);
            self.reached(MOVES + state, from * states + to);
        }
    }

    /// Something was reached; what cannot be is a failure.
    fn reached(&mut self, section: usize, at: usize) {
        self.coverage.count(section, at);
        if let Some(why) = SECTIONS[section].impossible[at] {
            let text = format!("{} happened: {why}", SECTIONS[section].names[at]);
            self.fail(Kind::Safety, "coverage", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_impossible_is_a_failure_when_it_happens() {
        let mut world = World::new(1, false);
        world.moved(0, Office::ALL.len(), Office::Flushing as usize, Office::Committing as usize);
        assert!(world.failure.is_none(), "{:?}", world.failure);
        world.moved(0, Office::ALL.len(), Office::Secondary as usize, Office::Primary as usize);
        let failure = world.failure.expect("no office without a commit");
        assert!(failure.text.contains("Secondary->Primary"), "{failure}");
    }

    #[test]
    fn some_seeds_reach_every_role_and_frame() {
        let mut all = Coverage::default();
        for seed in 0..60 {
            let mut world = World::new(seed, false);
            world.run();
            let mut read = Coverage::default();
            let line = world.coverage.line();
            read.set(&line.split(' ').filter_map(|word| word.parse().ok()).collect::<Vec<u64>>());
            all.add(&read);
        }
        let reached = |title: &str| {
            let section = SECTIONS.iter().find(|section| section.title == title).expect(title);
            (0..section.names.len()).filter(|&at| all.count_of(section, at) > 0).count()
        };
        // A promotion rarely waits for writes. One role needs a majority.
        assert!(reached("roles") >= Office::ALL.len() - 2);
        // An authority is rarely refused.
        let frames = SECTIONS.iter().find(|section| section.title == "frames").expect("frames");
        let missed = (0..frames.names.len())
            .filter(|&at| frames.impossible[at].is_none() && all.count_of(frames, at) == 0);
        assert!(missed.count() <= 1);
        let section = &SECTIONS[MOVES];
        let impossible = (0..section.names.len())
            .filter(|&at| section.impossible[at].is_some() && all.count_of(section, at) > 0);
        assert_eq!(impossible.count(), 0);
    }
}
