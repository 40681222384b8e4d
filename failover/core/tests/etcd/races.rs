//! Worlds in which one question to etcd is late in the one moment in which that matters. No seed
//! may meet them; each says how long it took from the beginning until beta had the office.

use failover_core::{Span, Time};

use crate::world::{NODES, Question, Way, World};

/// What one of them is.
pub type Race = fn() -> Result<Span, String>;

/// All of them. Each fails where two have a lease at one time.
pub const RACES: [(&str, Race); 3] = [
    ("an answer is slow", the_answer_to_the_last_renewal_is_slow),
    ("a read is slow", the_read_that_shows_the_last_renewal_is_slow),
    ("a takeover is slow", the_holder_is_back_while_the_takeover_is_on_its_way),
];

/// The last renewal of alpha arrives at once, and its answer comes three quarters of a lease later:
/// its lease counts from when it was sent.
fn the_answer_to_the_last_renewal_is_slow() -> Result<Span, String> {
    let mut world = silent();
    let (there, back) = (Span::from_ms(1), Span::from_ms(750));
    slow(&mut world, Way { of: "alpha", question: Question::Renewal, there, back })?;
    let began = world.now;
    world.isolated = Some("alpha");
    until_beta(&mut world, began)
}

/// A read of beta arrives half a lease after it was sent, just after the last renewal of alpha: the
/// wait begins when its answer comes in.
fn the_read_that_shows_the_last_renewal_is_slow() -> Result<Span, String> {
    let mut world = silent();
    let (there, back) = (Span::from_ms(500), Span::from_ms(1));
    slow(&mut world, Way { of: "beta", question: Question::Read, there, back })?;
    let began = world.now;
    pass(&mut world, Span::from_ms(480))?;
    world.isolated = Some("alpha");
    until_beta(&mut world, began)
}

/// Beta has waited for long enough, and its takeover takes a while to arrive; meanwhile alpha
/// reaches etcd again and renews its key: the takeover must not be done any more. Then alpha is
/// gone for good.
fn the_holder_is_back_while_the_takeover_is_on_its_way() -> Result<Span, String> {
    let mut world = silent();
    let began = world.now;
    world.isolated = Some("alpha");
    let (there, back) = (Span::from_ms(700), Span::from_ms(1));
    slow(&mut world, Way { of: "beta", question: Question::Change, there, back })?;
    world.isolated = None;
    if !world.run(Span::from_ms(650), |world| world.has_lease("alpha")) {
        return Err(failed(&world, "alpha did not renew"));
    }
    let end = began + Span::from_ms(2_500);
    let rest = end.since(world.now);
    pass(&mut world, rest)?;
    world.isolated = Some("alpha");
    until_beta(&mut world, began)
}

/// Alpha serves, and the two nodes no longer hear each other; both replicas are members.
fn silent() -> World {
    let mut world = World::new(0).founded();
    world.is_silent = true;
    world.pass(Span::from_ms(300));
    assert!(world.has_lease(NODES[0]));
    world
}

/// Runs until a question was sent that takes this way.
fn slow(world: &mut World, way: Way) -> Result<(), String> {
    world.way = Some(way);
    match world.run(Span::from_ms(3_000), |world| world.way.is_none()) {
        true => Ok(()),
        false => Err(failed(world, "it was not asked")),
    }
}

fn pass(world: &mut World, span: Span) -> Result<(), String> {
    world.run(span, |_| false);
    world.broken.as_ref().map_or(Ok(()), |_| Err(failed(world, "")))
}

/// Beta takes the office; and then everything goes on for a while.
fn until_beta(world: &mut World, began: Time) -> Result<Span, String> {
    if !world.run(Span::from_ms(5_000), |world| world.has_lease("beta")) {
        return Err(failed(world, "beta did not take the office"));
    }
    let took = world.now.since(began);
    world.isolated = None;
    pass(world, Span::from_ms(3_000))?;
    Ok(took)
}

fn failed(world: &World, why: &str) -> String {
    let broken = world.broken.as_deref().unwrap_or(why);
    format!("{broken}: {:#?}{}", world.log, world.at_the_end())
}

#[cfg(not(feature = "defects"))]
#[test]
fn no_slow_question_gives_two_a_lease_or_keeps_the_office_empty() {
    for (name, race) in RACES {
        let took = race().unwrap_or_else(|why| panic!("{name}: {why}"));
        println!("{name}: {took:?}");
        assert!(took > Span::from_ms(1_100) && took < Span::from_ms(4_500), "{name}: {took:?}");
    }
}
