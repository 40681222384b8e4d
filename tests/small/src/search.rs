//! Breadth first through every state of a small world. The first broken promise found this way has
//! a shortest path, which is printed as a story.

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;

use crate::scene::{Action, Scene, State};

/// How a search ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Steps from one to another.
    pub transitions: usize,
    /// Steps of the longest shortest path.
    pub depth: usize,
    /// Every state was looked at.
    pub is_exhausted: bool,
}

/// How each state was reached first: from which, and by what. Kept where the hook of a panic can
/// see it: a core that breaks its own assertion is a counterexample too.
static REACHED: Mutex<Vec<(u32, Action)>> = Mutex::new(Vec::new());
static TRIED: Mutex<Option<(Scene, u32, Action)>> = Mutex::new(None);
const ROOT: u32 = u32::MAX;

/// Looks at every state of a world, or at so many.
pub fn search(scene: &Scene, states_max: usize) -> Result<Found, Failure> {
    REACHED.lock().expect("nobody died with it").clear();
    let first = State::first(scene);
    let mut seen = HashSet::from([first.digest()]);
    let mut waiting = VecDeque::from([(first, ROOT, 0)]);
    let mut found = Found { states: 1, ..Found::default() };
    let mut actions = Vec::new();
    while let Some((state, number, depth)) = waiting.pop_front() {
        found.depth = depth;
        actions.clear();
        state.actions(scene, &mut actions);
        for &action in &actions {
            found.transitions += 1;
            *TRIED.lock().expect("nobody died with it") = Some((*scene, number, action));
            let mut next = state.clone();
            if let Err(why) = next.take(scene, action) {
                return Err(Failure { why, path: path(number, action) });
            }
            if !seen.insert(next.digest()) {
                continue;
            }
            found.states += 1;
            let mut reached = REACHED.lock().expect("nobody died with it");
            reached.push((number, action));
            waiting.push_back((next, reached.len() as u32 - 1, depth + 1));
            if found.states >= states_max {
                return Ok(found);
            }
        }
    }
    found.is_exhausted = true;
    Ok(found)
}

/// A promise was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which, and how.
    pub why: String,
    /// What led to it.
    pub path: Vec<Action>,
}

fn path(mut number: u32, last: Action) -> Vec<Action> {
    let reached = REACHED.lock().expect("nobody died with it");
    let mut path = vec![last];
    while number != ROOT {
        let (before, action) = reached[number as usize];
        path.push(action);
        number = before;
    }
    path.reverse();
    path
}

/// The way to the state that was reached last: the longest of all shortest ways.
pub fn deepest() -> Vec<Action> {
    let last = REACHED.lock().expect("nobody died with it").last().copied();
    last.map_or_else(Vec::new, |(number, action)| path(number, action))
}

/// What was being tried, for the hook of a panic.
pub fn tried() -> Option<(Scene, Vec<Action>)> {
    let tried = *TRIED.lock().ok()?;
    tried.map(|(scene, number, action)| (scene, path(number, action)))
}

/// A path as a story: what happened, and below it what the cores ordered. With `panics` the last
/// step is only named.
pub fn tell(scene: &Scene, path: &[Action], panics: bool) -> String {
    let mut state = State::first(scene);
    state.pair.story = Some(Vec::new());
    let mut told = String::new();
    for (number, &action) in path.iter().enumerate() {
        told += &format!("{:3}. {}\n", number + 1, state.describe(scene, action));
        if panics && number + 1 == path.len() {
            break;
        }
        let result = state.take(scene, action);
        for line in state.pair.story.as_mut().map(std::mem::take).unwrap_or_default() {
            told += &format!(" {line}\n");
        }
        if let Err(why) = result {
            told += &format!("     BROKEN   {why}\n");
        }
    }
    told
}
