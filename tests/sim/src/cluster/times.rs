//! How long failovers take, in virtual time, for each kind of failure: from the blow to the first
//! write that is acknowledged after it, with the shipping time-outs on a quiet local network and
//! clients at work. The services on top, and the kernel's device, come on top of that.

use history::draw::Draw;
use replicator_core::{ByteRange, Span, Timing};

use crate::clients::Ask;
use crate::cluster::{ClusterPlan, WITNESS};
use crate::plan::Plan;
use crate::tell;
use crate::world::{MS, World};

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blow {
    /// The primary's daemon is killed and stays away.
    Killed,
    /// It is killed and started again at once.
    KilledAndBack,
    /// Its machine loses its power.
    PowerLost,
    /// Its machine lives and nobody hears it.
    Isolated,
    /// Its machine stands still.
    Paused,
    /// Only the link between the data nodes is cut.
    DataLinkCut,
    /// The other data node is gone.
    SecondaryLost,
    /// The witness is gone.
    WitnessLost,
    /// An operator moves the office.
    Switchover,
}

impl Blow {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Killed,
        Self::KilledAndBack,
        Self::PowerLost,
        Self::Isolated,
        Self::Paused,
        Self::DataLinkCut,
        Self::SecondaryLost,
        Self::WitnessLost,
        Self::Switchover,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Killed => "daemon killed for good",
            Self::KilledAndBack => "daemon killed and back at once",
            Self::PowerLost => "machine of the primary gone",
            Self::Isolated => "primary isolated, alive",
            Self::Paused => "primary stands still",
            Self::DataLinkCut => "data link cut only",
            Self::SecondaryLost => "machine of the secondary gone",
            Self::WitnessLost => "witness gone",
            Self::Switchover => "switchover",
        }
    }

    /// The longest pause that is borne.
    fn goal(self) -> Span {
        Span::from_ms(match self {
            Self::Killed | Self::PowerLost | Self::Isolated | Self::Paused => 1_500,
            Self::DataLinkCut | Self::SecondaryLost => 1_000,
            Self::KilledAndBack | Self::Switchover | Self::WitnessLost => 300,
        })
    }

    /// Whether the other node is to be primary afterwards.
    pub fn moves_the_office(self) -> bool {
        match self {
            Self::Killed | Self::PowerLost | Self::Isolated | Self::Paused => true,
            Self::Switchover => true,
            Self::KilledAndBack | Self::DataLinkCut => false,
            Self::SecondaryLost | Self::WitnessLost => false,
        }
    }
}

/// What one blow did.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Until the first write that was made after it was acknowledged.
    pub pause: Span,
    /// Whether the other node is primary now.
    pub moved: bool,
}

/// Longer than any measurement.
const FOR_EVER: u64 = 1_000_000_000 * MS;
/// Nothing takes longer.
const LIMIT: u64 = 30_000 * MS;

pub(super) fn quiet_plan(draw: &mut Draw) -> Plan {
    let drawn = Plan::draw(draw);
    Plan {
        data_bytes: 16 << 20,
        room_bytes: 16 << 20,
        block_bytes: 4096,
        spots: (1..9).map(|spot| spot << 20).collect(),
        is_wide: false,
        requests: 1_000_000,
        confirms_reads: false,
        ahead: None,
        workers: 4,
        think_ms: 5,
        faults: Vec::new(),
        troubles: 0,
        delay_us: 200,
        disk_us: 200,
        flush_us: 1_000,
        encodes: false,
        clock_rates: [1_000; 2],
        // What the daemon takes when its file says nothing.
        timing: Timing {
            peer_silence: Span::from_ms(700),
            ping_interval: Span::from_ms(200),
            ..Timing::default()
        },
        ..drawn
    }
}

/// One blow at some moment that the seed decides; an error says what broke.
pub fn measure(blow: Blow, seed: u64, trace: bool) -> Result<Measured, String> {
    let mut draw = Draw::new(seed ^ 0x71e5);
    let plan = quiet_plan(&mut draw);
    let moment = 500 * MS + draw.below(1_500_000) * 1_000;
    let mut world = World::with_cluster(seed, draw, plan, ClusterPlan::quiet(), trace);
    world.tells_steps = false;
    let has_both = |world: &World| {
        let newest = world.cluster().newest();
        let entry = newest.and_then(|state| state.resource(super::RESOURCE));
        entry.is_some_and(|entry| entry.state.set.len() == 2) && world.device().is_some()
    };
    while !has_both(&world) {
        world.advance(10 * MS)?;
        if world.now > LIMIT {
            return Err("no pair in time".into());
        }
    }
    world.advance(moment)?;
    let (primary, _) = world.device().expect("it was there");
    let began = world.now;
    tell!(world, "{blow:?}");
    world.strike_with(blow, primary);
    let mut probe: Option<(u64, usize)> = None;
    loop {
        if let Some((id, node)) = probe.filter(|(id, _)| !world.clients.open.contains_key(id)) {
            let moved = node != primary;
            let has_to_wait = blow == Blow::Switchover && !moved;
            if world.acknowledged(id) && !has_to_wait {
                return Ok(Measured { pause: Span(world.now - began), moved });
            }
            probe = None;
        }
        let server = (0..2).find(|&node| world.would_answer(node));
        if let Some(node) = server
            && probe.is_none_or(|(_, at)| at != node)
        {
            let (_, office) = world.device().expect("somebody serves");
            let range = ByteRange::new(12 << 20, 4096);
            probe = Some((world.request(None, node, office, Ask::Write(range, false)), node));
        }
        world.advance(MS / 4)?;
        if world.now - began > LIMIT {
            return Err(format!("nothing is acknowledged within {} ms", LIMIT / MS));
        }
    }
}

impl World {
    /// What happens within this time; the first failure is the error.
    pub(super) fn advance(&mut self, span: u64) -> Result<(), String> {
        self.run_for(span);
        match &self.failure {
            Some(failure) => Err(failure.to_string()),
            None => Ok(()),
        }
    }

    /// Whether a probe that is no longer open was acknowledged.
    fn acknowledged(&self, id: u64) -> bool {
        self.clients.acknowledged_last == id
    }

    /// Nobody hears the node, and it hears nobody, for so long.
    pub(super) fn isolate_wholly(&mut self, node: usize, length: u64) {
        let until = self.now + length;
        for other in (0..self.cluster().count()).filter(|other| *other != node) {
            let cut = &mut self.cluster_mut().cut_until;
            (cut[node][other], cut[other][node]) = (until, until);
        }
        self.blocked_until = [until; 2];
    }

    fn strike_with(&mut self, blow: Blow, primary: usize) {
        match blow {
            Blow::Killed => self.kill(primary),
            Blow::KilledAndBack => self.fall(primary, MS, false),
            Blow::PowerLost => {
                // Nobody answers for a machine that is off.
                self.isolate_wholly(primary, FOR_EVER);
                self.cut_power(primary);
            }
            Blow::Isolated => self.isolate_wholly(primary, FOR_EVER),
            Blow::Paused => self.stand_still(primary, FOR_EVER),
            Blow::DataLinkCut => {
                let cut = &mut self.cluster_mut().cut_until;
                (cut[0][1], cut[1][0]) = (FOR_EVER, FOR_EVER);
                self.blocked_until = [FOR_EVER; 2];
            }
            Blow::SecondaryLost => {
                self.isolate_wholly(1 - primary, FOR_EVER);
                self.cut_power(1 - primary);
            }
            Blow::WitnessLost => self.end_seat(WITNESS),
            Blow::Switchover => self.switch_over(),
        }
    }
}

/// Tells the story of one measurement; whether there is a blow of this name.
pub fn tell(name: &str, seed: u64) -> bool {
    let blow = Blow::ALL.into_iter().find(|blow| format!("{blow:?}") == name);
    if let Some(blow) = blow {
        println!("{:?}", measure(blow, seed, true));
    }
    blow.is_some()
}

/// Measures so many blows of each kind and prints the table; whether all went as they must.
pub fn print(runs: u64) -> bool {
    println!(
        "pause of writes in virtual ms, {runs} runs of each kind, lease 1000 ms, silence of a \
         peer 700 ms:\n{:32} {:>8} {:>8} {:>8} {:>8}  office moved",
        "", "p50", "p99", "worst", "goal"
    );
    let mut is_well = true;
    for blow in Blow::ALL {
        let mut pauses = Vec::new();
        let mut moved = 0;
        for seed in 0..runs {
            match measure(blow, seed, false) {
                Ok(measured) => {
                    pauses.push((measured.pause.0, seed));
                    moved += u64::from(measured.moved);
                }
                Err(why) => {
                    is_well = false;
                    println!("{} seed {seed}: {why}", blow.name());
                }
            }
        }
        let wanted = if blow.moves_the_office() { runs } else { 0 };
        is_well &= moved == wanted;
        is_well &= pauses.iter().all(|(pause, _)| *pause <= blow.goal().0);
        pauses.sort_unstable();
        let at = |percent: usize| {
            let last = pauses.len().saturating_sub(1);
            pauses.get(last * percent / 100).map_or(f64::NAN, |(ns, _)| *ns as f64 / 1e6)
        };
        println!(
            "{:32} {:8.1} {:8.1} {:8.1} {:8}  {moved} of {runs}; the worst: {blow:?} {}",
            blow.name(),
            at(50),
            at(99),
            at(100),
            blow.goal().as_ms(),
            pauses.last().map_or(0, |(_, seed)| *seed),
        );
    }
    is_well
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blow_ends_in_time_and_moves_the_office_when_it_must() {
        for blow in Blow::ALL {
            for seed in 0..4 {
                let measured = measure(blow, seed, false).expect("a blow that is survived");
                assert_eq!(measured.moved, blow.moves_the_office(), "{blow:?} {seed}");
                assert!(measured.pause <= blow.goal(), "{blow:?} {seed}: {measured:?}");
            }
        }
    }
}
