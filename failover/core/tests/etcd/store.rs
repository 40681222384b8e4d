//! etcd as the cores see it: a linearizable store. What is asked may be lost, come late, or be done
//! without the answer arriving; what was done stays.

use std::collections::BTreeMap;

use failover_core::etcd::{Answer, Ask, Contents, Key, Transaction, Value};

#[derive(Default)]
pub struct Store {
    /// Changes with every change of a key.
    pub revision: u64,
    pub id: u64,
    pub values: BTreeMap<Key, (u64, Value)>,
}

impl Store {
    /// Does what is asked, at this moment.
    pub fn ask(&mut self, ask: &Ask) -> Answer {
        match ask {
            Ask::Read => Answer::Contents(Box::new(self.contents())),
            Ask::Write(transaction) if self.fits(transaction) => {
                self.revision += 1;
                for (key, value) in &transaction.puts {
                    self.values.insert(key.clone(), (self.revision, value.clone()));
                }
                Answer::Written { revision: self.revision }
            }
            Ask::Write(_) => Answer::Contents(Box::new(self.contents())),
        }
    }

    fn fits(&self, transaction: &Transaction) -> bool {
        let revision = |key| self.values.get(key).map_or(0, |(revision, _)| *revision);
        transaction.compares.iter().all(|(key, wanted)| revision(key) == *wanted)
    }

    pub fn contents(&self) -> Contents {
        let mut contents =
            Contents { store: self.id, revision: self.revision, ..Contents::default() };
        for (key, (revision, value)) in &self.values {
            match (key, value.clone()) {
                (_, Value::Founder(founder)) => contents.founder = Some((founder, true)),
                (_, Value::State(state)) => contents.state = Some((*revision, *state)),
                (Key::Lease(node), Value::Lease(lease)) => {
                    contents.leases.insert(node.clone(), (*revision, lease));
                }
                other => unreachable!("{other:?}"),
            }
        }
        contents
    }

    /// A copy that somebody keeps.
    pub fn backup(&self) -> Self {
        Self { revision: self.revision, id: self.id, values: self.values.clone() }
    }

    /// Everything is gone.
    pub fn empty(&mut self) {
        self.values.clear();
        self.revision += 1;
    }
}
