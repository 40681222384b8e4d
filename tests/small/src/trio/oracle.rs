//! What a block may be: the promises (a) and (b), and that members at rest are equal. A client has
//! one request under way for a block at a time, so each block is a register with one writer.

use std::collections::BTreeMap;

use replicator_core::register::RegisterState;

use super::world::{Asks, Happened, NODES, World};

/// The memory of those who watch.
#[derive(Clone, Debug, Default, Hash)]
pub struct Oracle {
    blocks: BTreeMap<u64, Block>,
    /// Requests without an answer.
    open: BTreeMap<u64, Open>,
    /// The newest tenure that was opened.
    tenure: u64,
    /// Whose.
    serving: usize,
    /// The newest set, a bit each.
    set: u8,
}

/// What is known of a block.
#[derive(Clone, Debug, Hash)]
struct Block {
    /// It is one of these.
    may_be: Vec<u32>,
    /// After a loss of power of all holders it is one of these too.
    before: Vec<u32>,
    /// Members at the last promise that kept their power since, a bit each.
    holders: u8,
}

impl Default for Block {
    fn default() -> Self {
        Self { may_be: vec![0], before: Vec::new(), holders: 0 }
    }
}

#[derive(Clone, Copy, Debug, Hash)]
struct Open {
    node: usize,
    tenure: u64,
    what: What,
    /// Nodes that lost their power since it was asked.
    unpowered: u8,
}

#[derive(Clone, Copy, Debug, Hash)]
enum What {
    Write { block: u64, number: u32, fua: bool },
    Read { block: u64 },
    Flush,
}

impl Oracle {
    /// A client asks.
    pub fn asked(&mut self, world: &World, node: usize, request: u64, asks: Asks, number: u32) {
        let what = match asks {
            Asks::Write(block, fua) => What::Write { block, number, fua },
            Asks::Trim(block) => What::Write { block, number: 0, fua: false },
            Asks::Read(block) => What::Read { block },
            Asks::Flush => What::Flush,
        };
        let tenure = world.process(node).and_then(|process| process.device).unwrap_or(0);
        self.open.insert(request, Open { node, tenure, what, unpowered: 0 });
    }

    /// Whether nobody works on a block, and no flush waits.
    pub fn is_free(&self, block: u64) -> bool {
        self.open.values().all(|open| match open.what {
            What::Write { block: other, .. } | What::Read { block: other } => other != block,
            What::Flush => false,
        })
    }

    /// Requests that will be answered.
    pub fn under_way(&self) -> usize {
        self.open.len()
    }

    /// Nobody will ever answer what a process was asked.
    pub fn answers_lost(&mut self, node: usize) {
        let numbers: Vec<u64> =
            self.open.iter().filter(|(_, open)| open.node == node).map(|(&n, _)| n).collect();
        for number in numbers {
            let open = self.open.remove(&number).expect("just seen");
            self.unknown(open.what);
        }
    }

    fn unknown(&mut self, what: What) {
        if let What::Write { block, number, .. } = what {
            self.blocks.entry(block).or_default().may_be.push(number);
        }
    }

    /// A machine lost its power: a promise that was kept in caches only ends with the last cache.
    pub fn power_lost(&mut self, node: usize) {
        for open in self.open.values_mut() {
            open.unpowered |= 1 << node;
        }
        for block in self.blocks.values_mut() {
            block.holders &= !(1 << node);
            block.excuse();
        }
    }

    /// Takes what happened in one step; an error names the promise that was broken.
    pub fn watch(&mut self, world: &World, happened: &[Happened]) -> Result<(), String> {
        // Who left the set is asked no more: its cache counts for nothing.
        let set = members(&world.register);
        if set != self.set {
            self.set = set;
            self.blocks.values_mut().for_each(|block| {
                block.holders &= set;
                block.excuse();
            });
        }
        for event in happened {
            match event {
                Happened::Replied(_, request, result) => {
                    let Some(open) = self.open.remove(request) else { continue };
                    let Ok(seen) = result else {
                        self.unknown(open.what);
                        continue;
                    };
                    if open.tenure < self.tenure {
                        return Err("(b) an older tenure answers after a later one opened".into());
                    }
                    let seen = seen.as_ref().map(|numbers| numbers[0]);
                    self.replied(world, open, seen)?;
                }
                Happened::Opened(node, tenure) => self.opened(world, *node, *tenure)?,
                Happened::Resync(..) => {}
            }
        }
        Ok(())
    }

    fn replied(&mut self, world: &World, open: Open, seen: Option<u32>) -> Result<(), String> {
        let status = &world.process(open.node).expect("it answered").replica.status(world.now);
        let members = members(&status.register) & self.set;
        match open.what {
            What::Write { block, number, fua } => {
                let known = self.blocks.entry(block).or_default();
                known.promise(number, members & !open.unpowered, fua);
                known.excuse();
            }
            What::Read { block } => {
                let number = seen.ok_or("a read without data")?;
                let known = self.blocks.entry(block).or_default();
                known.check(block, number, "read")?;
                if known.may_be.len() > 1 {
                    known.promise(number, members & !open.unpowered, false);
                    known.excuse();
                }
            }
            What::Flush => {
                // Nothing else is under way when a flush is asked for.
                for known in self.blocks.values_mut() {
                    known.before.clear();
                }
            }
        }
        Ok(())
    }

    /// R2c: a taker has flushed what it has, and from now on that is what there is.
    fn opened(&mut self, world: &World, node: usize, tenure: u64) -> Result<(), String> {
        if tenure < self.tenure {
            return Err(format!("(b) tenure {tenure} opens after {}", self.tenure));
        }
        if tenure == self.tenure && node != self.serving {
            return Err(format!("(b) two nodes have tenure {tenure}"));
        }
        (self.tenure, self.serving) = (tenure, node);
        let pending: Vec<(u64, u32)> = self
            .open
            .values()
            .filter_map(|open| match open.what {
                What::Write { block, number, .. } => Some((block, number)),
                _ => None,
            })
            .collect();
        let live = world.node(node).disk.live();
        for (&block, known) in &mut self.blocks {
            let number = live[block as usize];
            if !pending.contains(&(block, number)) {
                known.check(block, number, "on the disk of a new primary")?;
            }
            (known.may_be, known.before) = (vec![number], Vec::new());
        }
        for (block, _) in pending {
            let number = live[block as usize];
            let known = self.blocks.entry(block).or_default();
            (known.may_be, known.before) = (vec![number], Vec::new());
        }
        // What is still under way there can only fail now, and is nowhere any more.
        self.open
            .retain(|_, open| open.tenure >= tenure || !matches!(open.what, What::Write { .. }));
        Ok(())
    }

    /// At rest, with three members: one content, and one that was promised.
    pub fn check_equal(&self, world: &World) -> Result<(), String> {
        let [one, two, three] = [0, 1, 2].map(|node| world.node(node).disk.live());
        for other in [two, three] {
            if let Some(at) = one.iter().zip(other).position(|(a, b)| a != b) {
                let all = [one[at], two[at], three[at]];
                return Err(format!("members at rest differ in block {at}: {all:?}"));
            }
        }
        for (&block, known) in &self.blocks {
            known.check(block, one[block as usize], "at rest")?;
        }
        Ok(())
    }
}

impl Block {
    fn promise(&mut self, number: u32, holders: u8, durable: bool) {
        if durable {
            self.before.clear();
        } else {
            self.before.append(&mut self.may_be);
        }
        self.may_be = vec![number];
        self.holders = holders;
    }

    fn excuse(&mut self) {
        if self.holders == 0 {
            self.may_be.append(&mut self.before);
        }
    }

    fn check(&self, block: u64, number: u32, how: &str) -> Result<(), String> {
        if self.may_be.contains(&number) {
            return Ok(());
        }
        let may_be = &self.may_be;
        Err(format!("(a) block {block} is {number} {how}, and must be one of {may_be:?}"))
    }
}

fn members(state: &RegisterState) -> u8 {
    state.set.iter().fold(0, |all, member| all | 1 << (member.replica.0 - 1))
}

const _: () = assert!(NODES <= 8);
