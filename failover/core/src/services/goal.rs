//! What is to run now, and what is to be done about it: looked at anew after every fact.
//!
//! A service starts when it may run here, what comes before it in the list runs, and its pause is
//! over. It stops when it may not run here, or when something it stands on does not run; what
//! stands on it stops first. Services of the secondary are gone before those of the primary start.

use alloc::vec;
use alloc::vec::Vec;

use super::engine::{Engine, Office};
use super::outcome::Force;
use super::port::Effect;
use super::service::{Action, Phase, Service};
use super::spec::Place;

/// What is to become of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    /// Nothing: hands off.
    Leave,
    /// It runs, or starts as soon as it can.
    Run,
    /// It may run when something else does.
    Wait,
    /// It does not run.
    Stop,
}

/// Whether a service stands on, or waits for, another one: it comes later in the list, and the
/// other runs wherever it runs.
fn follows(later: &Service, earlier: &Service) -> bool {
    let is_with = match later.spec.place {
        Place::Primary => matches!(earlier.spec.place, Place::Primary | Place::All),
        Place::Secondary => matches!(earlier.spec.place, Place::Secondary | Place::All),
        Place::All => earlier.spec.place == Place::All,
    };
    is_with && earlier.spec.step < later.spec.step
}

impl Engine {
    /// Whether office and operator want it to run here.
    pub(super) fn may_run(&self, at: usize) -> bool {
        let service = &self.services[at];
        let is_placed_here = match service.spec.place {
            Place::Primary => self.office == Office::Held,
            Place::Secondary => self.is_up && self.office == Office::NotHeld,
            Place::All => self.is_up,
        };
        // One that only looks tells who could serve, here as elsewhere.
        let is_forbidden =
            self.forbidden.is_some() && service.is_primary_only() && !service.is_witness_only();
        is_placed_here && !service.is_off && !is_forbidden
    }

    /// Whether all that should run on this node runs.
    pub(super) fn runs_all(&self) -> bool {
        (0..self.services.len()).all(|at| {
            let service = &self.services[at];
            !self.may_run(at) || !service.blocks() || service.phase == Phase::Running
        })
    }

    /// What is to become of each service. What comes earlier in the list is judged first.
    fn goals(&self) -> Vec<Goal> {
        let mut order: Vec<usize> = (0..self.services.len()).collect();
        order.sort_by_key(|at| self.services[*at].spec.step);
        let mut goals = vec![Goal::Leave; order.len()];
        for at in order {
            goals[at] = self.goal(at, &goals);
        }
        goals
    }

    fn goal(&self, at: usize, goals: &[Goal]) -> Goal {
        let service = &self.services[at];
        let is_primary_only = service.is_primary_only();
        // During maintenance only an office that goes takes its services along.
        let goes = matches!(self.office, Office::Releasing(_) | Office::Lost);
        if self.is_maintained && self.is_up && !(goes && is_primary_only) {
            return Goal::Leave;
        }
        if self.office == Office::Unknown && service.spec.place != Place::All {
            // What an earlier process left may be continued, or must stop: that will be known.
            return Goal::Leave;
        }
        if !self.may_run(at) || service.restart_wanted || service.is_suspect {
            return Goal::Stop;
        }
        let mut goal = if self.opposite_runs(service) { Goal::Wait } else { Goal::Run };
        for (other, earlier) in self.services.iter().enumerate() {
            if !follows(service, earlier) {
                continue;
            }
            let stays = earlier.phase == Phase::Running && goals[other] != Goal::Stop;
            if earlier.carries() && !stays && earlier.phase != Phase::Unknown {
                return Goal::Stop;
            }
            let is_waited_for = if earlier.blocks() {
                !stays && (earlier.carries() || self.may_run(other))
            } else {
                !earlier.is_witness_only() && !earlier.had_its_chance()
            };
            if is_waited_for {
                goal = Goal::Wait;
            }
        }
        goal
    }

    /// Services of the primary and of the secondary never run at the same time.
    fn opposite_runs(&self, service: &Service) -> bool {
        let opposite = match service.spec.place {
            Place::Primary => Place::Secondary,
            Place::Secondary => Place::Primary,
            Place::All => return false,
        };
        let runs = |it: &Service| !matches!(it.phase, Phase::Stopped | Phase::StopHangs);
        self.services.iter().any(|it| it.spec.place == opposite && runs(it))
    }

    /// Orders what follows from all that is known.
    pub(super) fn reconcile(&mut self, effects: &mut Vec<Effect>) {
        let goals = self.goals();
        for at in 0..goals.len() {
            match goals[at] {
                Goal::Stop => self.see_stopped(at, &goals, effects),
                Goal::Run => self.see_running(at, &goals, effects),
                Goal::Wait => self.see_waiting(at, &goals, effects),
                Goal::Leave => {}
            }
            self.ask(at, goals[at], effects);
        }
    }

    fn see_stopped(&mut self, at: usize, goals: &[Goal], effects: &mut Vec<Effect>) {
        let service = &self.services[at];
        let is_hard = service.stop_from > Force::Orderly;
        match service.phase {
            Phase::Stopped => {}
            Phase::Stopping(force) if force < service.stop_from => {
                self.drop_job(at, effects);
                self.order(at, Action::Stop(self.services[at].stop_from), effects);
            }
            Phase::Stopping(_) => {}
            Phase::Starting => {
                self.drop_job(at, effects);
                self.apply(at, super::service::Event::Dropped);
                self.begin_stop(at, goals, effects);
            }
            // Before it is known what it is, only force may go on.
            Phase::Unknown if !is_hard => {}
            Phase::StopHangs if self.now < service.retry_at => {}
            Phase::Unknown | Phase::Running | Phase::Failed | Phase::StopHangs => {
                self.begin_stop(at, goals, effects);
            }
        }
    }

    fn see_running(&mut self, at: usize, goals: &[Goal], effects: &mut Vec<Effect>) {
        match self.services[at].phase {
            Phase::Stopped => self.begin_start(at, effects),
            _ => self.see_waiting(at, goals, effects),
        }
    }

    /// What is left of a failure is cleared away, whatever comes then.
    fn see_waiting(&mut self, at: usize, goals: &[Goal], effects: &mut Vec<Effect>) {
        let service = &self.services[at];
        match service.phase {
            Phase::Failed => self.begin_stop(at, goals, effects),
            Phase::StopHangs if self.now >= service.retry_at => {
                self.begin_stop(at, goals, effects);
            }
            Phase::StopHangs
            | Phase::Unknown
            | Phase::Stopped
            | Phase::Starting
            | Phase::Running
            | Phase::Stopping(_) => {}
        }
    }

    fn begin_start(&mut self, at: usize, effects: &mut Vec<Effect>) {
        let service = &self.services[at];
        let is_held_up = service.is_primary_only() && self.lapsed_since.is_some();
        let is_early = self.now < service.retry_at
            || service.is_address() && service.is_primary_only() && self.now < self.address_from;
        if !is_held_up && !is_early {
            self.order(at, Action::Start, effects);
        }
    }

    fn begin_stop(&mut self, at: usize, goals: &[Goal], effects: &mut Vec<Effect>) {
        let service = &self.services[at];
        let is_frozen = service.is_primary_only() && self.lapsed_since.is_some();
        if is_frozen || self.waits_for_later(at, goals) {
            return;
        }
        let force = service.stop_from.min(self.force_max(at));
        self.drop_job(at, effects);
        self.order(at, Action::Stop(force), effects);
    }

    /// What comes later in the list stops first. By force the order means nothing but to a file
    /// system, which others keep busy; and what hangs is not waited for.
    fn waits_for_later(&self, at: usize, goals: &[Goal]) -> bool {
        let service = &self.services[at];
        let is_hard = service.stop_from > Force::Orderly;
        if is_hard && !service.is_filesystem() {
            return false;
        }
        let is_waited_for = |(other, later): (usize, &Service)| {
            let is_over = match later.phase {
                Phase::Stopped => true,
                Phase::StopHangs => is_hard,
                _ => false,
            };
            follows(later, service) && goals[other] == Goal::Stop && !is_over
        };
        self.services.iter().enumerate().any(is_waited_for)
    }

    /// Asks what it is, where that is not known or it is time.
    fn ask(&mut self, at: usize, goal: Goal, effects: &mut Vec<Effect>) {
        let service = &self.services[at];
        let is_held_up = service.is_primary_only() && self.lapsed_since.is_some();
        let is_open = match service.phase {
            Phase::Unknown => true,
            // What is about to stop need not say how it is.
            Phase::Running => goal != Goal::Stop,
            _ => false,
        };
        let is_due = is_open && service.job.is_none() && self.now >= service.monitor_at;
        // By force it is stopped whatever it is.
        let is_killed = goal == Goal::Stop && service.stop_from > Force::Orderly;
        if is_due && !is_held_up && !is_killed {
            self.order(at, Action::Monitor, effects);
        }
    }
}
