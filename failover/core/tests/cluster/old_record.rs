//! L5: an acceptor whose record is an old copy has no vote, however far it comes and whoever hears
//! it; a late message of an earlier process is not taken for one.

use failover_core::cluster::Epoch;
use failover_core::detector::{Detector, Own};
use failover_core::message::{Envelope, Heartbeat, Message, RecordSeen};
use failover_core::node::Input;
use failover_core::voters::VotersWish;
use failover_core::{Span, Time};

use crate::world::{World, name, wake_defect};

const LONG: Span = Span::from_ms(10_000);

impl World {
    /// The node falls and comes back with a record of an earlier time.
    fn goes_back(&mut self, node: &str) {
        let older = self.machines[&name(node)].disk.clone();
        // Its record is written while the office changes hands.
        self.switch_over("beta");
        self.switch_over("alpha");
        self.kill(node);
        self.machines.get_mut(&name(node)).unwrap().disk = older;
        self.start(node);
    }

    /// The machine goes back to an earlier time with all its memory, as a virtual one can.
    fn goes_back_alive(&mut self, node: &str) {
        let machine = &self.machines[&name(node)];
        let (older, running) = (machine.disk.clone(), machine.node.clone());
        self.switch_over("beta");
        self.switch_over("alpha");
        let machine = self.machines.get_mut(&name(node)).unwrap();
        (machine.disk, machine.node) = (older, running);
    }

    fn switch_over(&mut self, target: &str) {
        let change = failover_core::command::Change::Want {
            resource: crate::world::RESOURCE.into(),
            node: Some(name(target)),
            force: Default::default(),
        };
        self.order("alpha", Input::Ordered { ticket: 5, change, why: "a test".into() }).unwrap();
        self.run_until(LONG, |world| world.has_lease(target));
        self.pass(Span::from_ms(500));
    }

    fn refuses(&self, by: &str, node: &str) -> bool {
        let trouble = self.core(by).vote_trouble(&name(node));
        !self.core(by).has_vote(&name(node))
            && trouble.is_some_and(|trouble| trouble.code == "went_back")
    }
}

#[test]
fn an_old_copy_of_a_record_has_no_vote_and_says_so() {
    let mut world = World::with_primary();
    world.goes_back("gamma");
    world.pass(Span::from_ms(2_000));
    assert!(world.refuses("alpha", "gamma") && world.refuses("beta", "gamma"));
    assert!(world.refuses("gamma", "gamma"), "it was told itself");
    assert!(world.has_lease("alpha"), "the other two are a majority");
    // Beta and it are none.
    world.kill("alpha");
    world.pass(LONG);
    assert!(!world.has_lease("beta"), "{:#?}", world.log);
}

/// Its process ends: its datagrams would be taken for repeated ones, and it is wrong in everything.
#[test]
fn a_machine_that_goes_back_with_its_memory_has_no_vote_and_says_so() {
    let mut world = World::with_primary();
    let before = world.machines[&name("gamma")].process;
    world.goes_back_alive("gamma");
    world.run_until(LONG, |world| world.machines[&name("gamma")].node.is_none());
    world.start("gamma");
    world.pass(Span::from_ms(2_000));
    assert_ne!(world.machines[&name("gamma")].process, before);
    assert!(world.refuses("gamma", "gamma"), "it was told itself");
    assert!(world.refuses("alpha", "gamma") && world.refuses("beta", "gamma"));
    assert!(world.has_lease("alpha"), "the other two are a majority");
}

/// A process of the old copy comes as far as the lost record was, and others tell so.
#[test]
fn what_others_tell_of_an_old_copy_makes_it_no_newer() {
    wake_defect();
    let mut detector = Detector::new(LONG);
    let own = Own { process: 7, beats: 5 };
    let gamma = name("gamma");
    let envelope = |process, began, sequence| Envelope {
        process,
        acceptor: 300,
        sequence,
        began,
        epoch: Epoch::default(),
        yours: None,
        message: Message::Heartbeat(Heartbeat::default()),
    };
    assert!(detector.hears(Time(1), &gamma, &envelope(1, 5, 13), own));
    let seen = RecordSeen {
        node: gamma.clone(),
        acceptor: 300,
        sequence: 14,
        process: 2,
        went_back: false,
    };
    detector.told(&seen, own);
    assert!(!detector.hears(Time(2), &gamma, &envelope(2, 11, 14), own), "it began with 11");
    assert!(detector.hears(Time(3), &gamma, &envelope(3, 14, 14), own), "an honest one");
}

/// O6: an earlier build says so in its heartbeats alone.
#[test]
fn what_an_earlier_build_has_heard_of_an_old_copy_counts_too() {
    let mut world = World::with_primary();
    world.goes_back("gamma");
    world.isolate("gamma");
    let machine = &world.machines[&name("beta")];
    let seen = RecordSeen {
        node: name("gamma"),
        acceptor: world.machines[&name("gamma")].disk.id,
        sequence: 99,
        ..RecordSeen::default()
    };
    let heartbeat = Heartbeat { number: 900, records: vec![seen], ..Heartbeat::default() };
    let envelope = Envelope {
        process: machine.process,
        acceptor: machine.disk.id,
        sequence: machine.disk.sequence,
        began: 0,
        epoch: world.core("gamma").epoch(),
        yours: None,
        message: Message::Heartbeat(heartbeat),
    };
    assert!(!world.refuses("gamma", "gamma"));
    world.step("gamma", Input::Received { from: name("beta"), envelope: Box::new(envelope) });
    assert!(world.refuses("gamma", "gamma"));
}

/// An answer that waits for the disk while it is told is never given.
#[test]
fn an_old_copy_gives_no_answer_that_waited_for_its_disk() {
    let mut world = World::with_primary();
    world.goes_back("gamma");
    world.isolate("gamma");
    world.pass(Span::from_ms(1_500));
    let acceptor = world.machines[&name("gamma")].disk.id;
    let newest = world.machines[&name("alpha")].disk.accepted.clone().unwrap().0;
    let (from, process) = (name("beta"), world.machines[&name("beta")].process);
    let ballot = failover_core::Ballot { counter: newest.counter + 9, node: from.clone(), process };
    let own = world.machines[&name("gamma")].process;
    let word = |message| Envelope {
        process,
        acceptor: 101,
        sequence: 99,
        began: 0,
        epoch: world.core("gamma").epoch(),
        yours: None,
        message,
    };
    let heartbeat = Heartbeat { number: 900, echo_of: own, ..Heartbeat::default() };
    let hello = word(Message::Heartbeat(heartbeat));
    let prepare = word(Message::Prepare { ballot, takes: Vec::new() });
    let seen = RecordSeen { node: name("gamma"), acceptor, sequence: 99, ..RecordSeen::default() };
    let news = Envelope { yours: Some(seen), ..prepare.clone() };
    for envelope in [hello, prepare, news] {
        let from = from.clone();
        world.step("gamma", Input::Received { from, envelope: Box::new(envelope) });
    }
    world.log.clear();
    world.pass(Span::from_ms(100));
    assert!(world.refuses("gamma", "gamma"));
    assert!(!world.log.iter().any(|line| line.contains("gamma promises")), "{:#?}", world.log);
}

/// A late accept must not bring it as far as it was: nobody could tell then.
#[test]
fn a_machine_that_went_back_with_its_memory_acts_on_no_message_of_one_who_knows_more() {
    let mut world = World::with_primary();
    world.goes_back_alive("gamma");
    let before = world.machines[&name("gamma")].disk.clone();
    let alpha = &world.machines[&name("alpha")];
    let (ballot, state) = alpha.disk.accepted.clone().unwrap();
    let ballot = failover_core::Ballot { counter: ballot.counter + 1, ..ballot };
    let core = alpha.node.as_ref().unwrap();
    let envelope = Envelope {
        process: alpha.process,
        acceptor: alpha.disk.id,
        sequence: alpha.disk.sequence,
        began: 0,
        epoch: core.epoch(),
        yours: core.detector().record(&name("gamma")),
        message: Message::Accept { ballot: ballot.clone(), state },
    };
    world.isolate("gamma");
    world.step("gamma", Input::Received { from: name("alpha"), envelope: Box::new(envelope) });
    world.pass(Span::from_ms(100));
    let after = &world.machines[&name("gamma")].disk;
    assert_eq!((&after.promised, &after.accepted), (&before.promised, &before.accepted));
    assert!(after.is_old_copy() && world.refuses("gamma", "gamma"));
}

/// What it says shows it too.
#[test]
fn a_process_that_names_less_than_it_did_counts_for_nothing_and_is_found_out_by_its_answers() {
    wake_defect();
    let mut detector = Detector::new(LONG);
    let own = |beats| Own { process: 7, beats };
    let gamma = name("gamma");
    let mut hears = |beats, sequence, echo: u64| {
        let heartbeat =
            Heartbeat { echo_of: 7, echo: Some((echo, Span(0))), ..Heartbeat::default() };
        let envelope = Envelope {
            process: 3,
            acceptor: 300,
            sequence,
            began: 10,
            epoch: Epoch::default(),
            yours: None,
            message: Message::Heartbeat(heartbeat),
        };
        let counts = detector.hears(Time(beats), &gamma, &envelope, own(beats));
        (counts, detector.node(&gamma).unwrap().went_back())
    };
    assert_eq!(hears(1, 11, 0), (true, false));
    assert_eq!(hears(2, 12, 1), (true, false));
    assert_eq!(hears(3, 11, 1), (false, false), "late words");
    assert_eq!(hears(3, 11, 2), (false, false), "it left before");
    assert_eq!(hears(3, 12, 2), (true, false));
    assert_eq!(hears(4, 11, 3), (false, true));
    assert_eq!(hears(5, 99, 4), (false, true), "however far it comes");
}

#[test]
fn an_old_copy_stays_one_after_a_restart_and_for_those_who_heard_nothing_newer() {
    let mut world = World::with_primary();
    world.goes_back("gamma");
    world.pass(Span::from_ms(2_000));
    for node in ["gamma", "beta"] {
        world.kill(node);
        world.start(node);
        world.pass(Span::from_ms(3_000));
    }
    assert!(world.refuses("alpha", "gamma") && world.refuses("beta", "gamma"));
    world.kill("alpha");
    world.pass(LONG);
    assert!(!world.has_lease("beta"), "{:#?}", world.log);
}

/// Nobody but its own record remembers (sim --cluster 201024).
#[test]
fn an_old_copy_stays_one_when_all_that_heard_something_newer_have_forgotten_it() {
    let mut world = World::with_primary();
    world.goes_back("gamma");
    world.pass(Span::from_ms(2_000));
    assert!(world.machines[&name("gamma")].disk.is_old_copy(), "the verdict is durable");
    for node in ["alpha", "beta", "gamma"] {
        world.kill(node);
    }
    for node in ["alpha", "beta", "gamma"] {
        world.start(node);
    }
    world.pass(LONG);
    assert!(world.has_lease("alpha") || world.has_lease("beta"), "they are a majority");
    for node in ["alpha", "beta", "gamma"] {
        assert!(world.refuses(node, "gamma"), "{node}: {:#?}", world.log);
    }
}

/// Else its record would soon be as new as the one that is lost (sim --cluster 201024).
#[test]
fn an_acceptor_follows_nobody_who_has_not_said_what_he_knows_of_its_record() {
    let mut world = World::with_primary();
    world.goes_back("gamma");
    let began = world.machines[&name("gamma")].disk.clone();
    let (process, acceptor) = (world.machines[&name("alpha")].process, 100);
    let newest = world.machines[&name("alpha")].disk.accepted.clone().unwrap();
    let ballot = failover_core::Ballot { counter: 900, node: name("alpha"), process };
    let messages = [
        Message::Learn { ballot: newest.0, state: newest.1.clone() },
        Message::Prepare { ballot: ballot.clone(), takes: Vec::new() },
        Message::Accept { ballot, state: newest.1 },
    ];
    for message in messages {
        let epoch = world.core("alpha").epoch();
        let envelope =
            Envelope { process, acceptor, sequence: 99, began: 0, epoch, yours: None, message };
        let from = name("alpha");
        world.step("gamma", Input::Received { from, envelope: Box::new(envelope) });
    }
    world.isolate("gamma");
    world.pass(Span::from_ms(100));
    assert_eq!(world.machines[&name("gamma")].disk, began);
    world.cut.clear();
    world.pass(Span::from_ms(2_000));
    assert!(world.refuses("gamma", "gamma"), "it was told");
}

#[test]
fn an_old_copy_is_replaced_by_an_empty_record() {
    let mut world = World::with_primary();
    world.goes_back("gamma");
    world.pass(Span::from_ms(2_000));
    let wish = VotersWish::Replace(name("gamma"));
    let refused = world.core("alpha").check_voters(&wish).unwrap_err();
    assert_eq!(refused.code, "went_back");
    world.kill("gamma");
    world.install("gamma", 300);
    world.start("gamma");
    world.pass(Span::from_ms(2_000));
    let change = world.core("alpha").check_voters(&wish).unwrap();
    world.order("alpha", Input::Ordered { ticket: 6, change, why: "a test".into() }).unwrap();
    world.pass(Span::from_ms(2_000));
    assert!(world.core("alpha").has_vote(&name("gamma")));
    world.kill("beta");
    world.pass(Span::from_ms(3_000));
    assert!(world.has_lease("alpha"), "{:#?}", world.log);
}

/// It came, was admitted and went back to what it came with, all out of sight of one node: that
/// one knew another acceptor of it, and what the others told it of this one was lost on it. So was
/// what it had heard itself, by one late message of the other (sim --cluster 1796039693976).
#[test]
fn who_never_heard_a_new_acceptor_knows_from_others_what_its_record_was() {
    let mut world = World::with_primary();
    let between = |node| [(name(node), name("gamma")), (name("gamma"), name(node))];
    world.cut.extend(between("alpha"));
    world.kill("gamma");
    world.install("gamma", 300);
    let older = world.machines[&name("gamma")].disk.clone();
    world.start("gamma");
    world.pass(Span::from_ms(2_000));
    let change = world.core("beta").check_voters(&VotersWish::Replace(name("gamma"))).unwrap();
    world.order("beta", Input::Ordered { ticket: 6, change, why: "a test".into() }).unwrap();
    world.pass(Span::from_ms(2_000));
    assert!(world.core("beta").has_vote(&name("gamma")));
    world.kill("gamma");
    world.machines.get_mut(&name("gamma")).unwrap().disk = older;
    world.cut = between("beta").to_vec();
    world.start("gamma");
    world.pass(Span::from_ms(2_000));
    assert!(world.refuses("alpha", "gamma"), "{:#?}", world.log);
    let record = &world.machines[&name("gamma")].disk;
    assert!(record.left_out_of.is_some() && record.accepted.is_none(), "{record:?}");
}

/// Late words of the process before, in a pause of the present one, then a late word of that: it
/// was taken for an acceptor that went back, for ever (sim --cluster 6007).
#[test]
fn late_messages_in_a_silence_make_nobody_an_old_copy() {
    let mut world = World::with_primary();
    let word = |world: &World, sequence: u64| {
        let machine = &world.machines[&name("alpha")];
        Envelope {
            process: machine.process,
            acceptor: machine.disk.id,
            sequence,
            began: sequence,
            epoch: Epoch::default(),
            yours: None,
            message: Message::Heartbeat(Heartbeat { number: 900, ..Heartbeat::default() }),
        }
    };
    let early = world.machines[&name("alpha")].disk.sequence;
    let of_first = word(&world, early);
    world.kill("alpha");
    world.start("alpha");
    world.run_until(LONG, |world| world.has_lease("alpha"));
    let of_second = word(&world, early);
    world.pass(Span::from_ms(500));
    assert!(world.machines[&name("alpha")].disk.sequence > early);
    // It stands still, and nothing of it arrives but late words.
    for other in ["beta", "gamma"] {
        world.cut.push((name("alpha"), name(other)));
    }
    for late in [of_first, of_second] {
        world.pass(Span::from_ms(1_200));
        for other in ["beta", "gamma"] {
            let envelope = Box::new(late.clone());
            world.step(other, Input::Received { from: name("alpha"), envelope });
        }
    }
    world.cut.clear();
    world.pass(Span::from_ms(3_000));
    for other in ["beta", "gamma"] {
        assert!(world.core(other).has_vote(&name("alpha")), "{other}: {:#?}", world.log);
    }
}
