//! The little language of the traces: one thing that happens on each line, and below it, indented,
//! everything that the cores order because of it.
//!
//! ```text
//! volume 128K | assumed equal      the size of the data area; must come first
//! start N                          a daemon starts (N is alpha or beta)
//! ready                            both start, alpha is promoted, beta becomes a member; untold
//! connect · cut                    the link comes, the link goes
//! N promote|demote|stop|connect|.. an operator's word; options as for replctl
//! N write A 0+4K [fua] · N read R 0+4K · N trim T 0+4K · N flush F
//!                                  a client asks; the letter names the request, and a write
//!                                  fills its sectors with it
//! N done KIND [RANGE] · N done all the oldest operation of the disk of this kind ends
//! N fails KIND [RANGE]             the same with an I/O error
//! N gets [KIND] · N gets all       the next frame arrives; KIND must be its first word
//! N loses frames                   what is on its way to N never comes
//! settle [quietly]                 disks and link work until nothing is left to do
//! wait 300                         milliseconds pass
//! live 300                         the same while disks and link work; pings are not told
//! N is killed                      the process dies; its disk finishes what it was given
//! N loses power [keeping all] [tearing]    nothing that was volatile remains, unless said so;
//!                                  tearing: of metadata under way the first sector lands
//! N rots 0+4K                      the disk changes what it was given, and nobody knows
//! N gets a new disk · N is used without us 0+4K · N loses log blocks
//! protocol 4                       what is spoken from the next connection on
//! fenced                           both nodes fence by themselves; before the first other command
//! N take-fenced · N stand-back · N peer-is-off (for the session it waits for) · N peer-was-off S
//! show                             roles, sets and contents
//! ```

use std::fmt::Write;

use replicator_core::block::{ByteRange, PeerIndex};
use replicator_core::{Command, DiskFailure, RegisterKeeper, SessionId, Timing};

use crate::pair::{ClientAsks, NAMES, Pair};
use crate::story;

const STEPS_MAX: usize = 20_000;

/// Runs a script and returns it with what it must look like: comments and commands as they are,
/// below each command what followed from it. An error names the line.
pub fn retell(script: &str) -> Result<String, String> {
    let mut told = String::new();
    let mut stage = Stage { data_bytes: 128 << 10, assume_equal: false, fenced: false, pair: None };
    for (number, line) in script.lines().enumerate() {
        if line.starts_with(' ') {
            continue;
        }
        told += line;
        told.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        stage.perform(&words).map_err(|why| format!("line {}: {line}: {why}", number + 1))?;
        let story = stage.pair.as_mut().and_then(|pair| pair.story.as_mut());
        for line in story.map(std::mem::take).unwrap_or_default() {
            told += line.trim_end();
            told.push('\n');
        }
    }
    Ok(told)
}

struct Stage {
    data_bytes: u64,
    assume_equal: bool,
    fenced: bool,
    pair: Option<Pair>,
}

type Outcome = Result<(), String>;

impl Stage {
    fn pair(&mut self) -> &mut Pair {
        self.pair.get_or_insert_with(|| {
            let mut pair = Pair::new(self.data_bytes, Timing::default(), self.assume_equal);
            if self.fenced {
                pair.keeper = RegisterKeeper::FencedSuperblock;
            }
            pair.story = Some(Vec::new());
            pair
        })
    }

    fn perform(&mut self, words: &[&str]) -> Outcome {
        match words {
            ["volume", size] => self.data_bytes = bytes(size)?,
            ["assumed", "equal"] => self.assume_equal = true,
            ["fenced"] => self.fenced = true,
            ["protocol", version] => {
                self.pair().version = version.parse().map_err(|_| "a version")?;
            }
            ["start", node] => {
                let node = number_of(node)?;
                self.pair().start(node);
            }
            ["ready"] => {
                let pair = self.pair();
                for node in 0..2 {
                    pair.start(node);
                }
                settle(pair)?;
                pair.order(0, promote(&["alone"])?);
                settle(pair)?;
                pair.connect();
                settle(pair)?;
                pair.story = Some(Vec::new());
                show(pair);
            }
            ["connect"] => self.pair().connect(),
            ["cut"] => self.pair().cut(),
            ["settle"] => return settle(self.pair()),
            ["settle", "quietly"] => {
                let pair = self.pair();
                settle(pair)?;
                pair.story = Some(Vec::new());
            }
            ["wait", ms] => {
                let ms = ms.parse().map_err(|_| "milliseconds")?;
                self.pair().wait(ms);
            }
            ["live", ms] => live(self.pair(), ms.parse().map_err(|_| "milliseconds")?)?,
            ["show"] => show(self.pair()),
            [node, rest @ ..] => {
                let node = number_of(node)?;
                return on_node(self.pair(), node, rest);
            }
            [] => {}
        }
        Ok(())
    }
}

fn live(pair: &mut Pair, ms: u64) -> Outcome {
    const STEP_MS: u64 = 100;
    for _ in 0..ms / STEP_MS {
        pair.wait(STEP_MS);
        settle(pair)?;
    }
    if let Some(story) = &mut pair.story {
        story.retain(|line| !line.ends_with("ping"));
    }
    Ok(())
}

fn on_node(pair: &mut Pair, node: usize, words: &[&str]) -> Outcome {
    match words {
        ["promote", options @ ..] => pair.order(node, promote(options)?),
        ["demote"] => pair.order(node, Command::Demote),
        ["take-fenced"] => pair.order(node, Command::TakeFenced),
        ["stand-back"] => pair.order(node, Command::StandBack),
        ["peer-is-off"] => {
            let process = pair.process(node).ok_or("its daemon does not run")?;
            let wait = process.replica.status(pair.now).awaits_fence;
            let wait = wait.ok_or("it does not wait for a fence")?;
            pair.order(node, Command::PeerIsOff(wait.peer, wait.session));
        }
        ["peer-was-off", session] => {
            let session = session.parse().map_err(|_| "the number of a session")?;
            pair.order(node, Command::PeerIsOff(PeerIndex(0), SessionId(session)));
        }
        ["stop"] => pair.order(node, Command::Stop),
        ["connect"] => pair.order(node, Command::Connect(PeerIndex(0))),
        ["disconnect"] => pair.order(node, Command::Disconnect(PeerIndex(0))),
        ["invalidate"] => pair.order(node, Command::Invalidate),
        ["resync-full"] => pair.order(node, Command::ResyncFull(PeerIndex(0))),
        ["verify", options @ ..] => {
            let repair = options.contains(&"repair");
            pair.order(node, Command::Verify { repair });
        }
        ["cancel-verify"] => pair.order(node, Command::CancelVerify),
        ["rots", place] => pair.rot(node, range(place)?),
        ["discard-diverged"] => pair.order(node, Command::DiscardDiverged),
        ["write", letter, place, options @ ..] => {
            let asks = ClientAsks::Write(range(place)?, options.contains(&"fua"));
            ask(pair, node, letter, asks)?;
        }
        ["read", letter, place] => ask(pair, node, letter, ClientAsks::Read(range(place)?))?,
        ["trim", letter, place] => ask(pair, node, letter, ClientAsks::Trim(range(place)?))?,
        ["flush", letter] => ask(pair, node, letter, ClientAsks::Flush)?,
        ["done", "all"] => {
            for _ in 0..pair.node(node).ops.len() {
                finish(pair, node, 0, Ok(()), true);
            }
        }
        ["done", which @ ..] => {
            let number = find_op(pair, node, which)?;
            finish(pair, node, number, Ok(()), false);
        }
        ["fails", which @ ..] => {
            let number = find_op(pair, node, which)?;
            finish(pair, node, number, Err(DiskFailure::Io(5)), false);
        }
        ["gets", "all"] => {
            for _ in 0..pair.towards[node].len() {
                deliver(pair, node, true)?;
            }
        }
        ["gets", "a", "new", "disk"] => pair.replace_disk(node),
        ["gets", kinds @ ..] => {
            let next = pair.towards[node].front().map(story::parcel);
            let next = next.ok_or("nothing is on its way to it")?;
            if kinds.first().is_some_and(|kind| next.split(' ').next() != Some(kind)) {
                return Err(format!("the next is: {next}"));
            }
            deliver(pair, node, false)?;
        }
        ["loses", "frames"] => pair.lose_parcels(node),
        ["is", "killed"] => pair.kill(node),
        ["is", "used", "without", "us", place] => {
            let place = range(place)?;
            pair.disk_mut(node).scribble(place, b'!');
        }
        ["loses", "power", how @ ..] => {
            let kept = if how.contains(&"keeping") { u64::MAX } else { 0 };
            let torn = if how.contains(&"tearing") { u64::MAX } else { 0 };
            pair.cut_power(node, kept, torn);
        }
        ["loses", "log", "blocks"] => {
            // The first block of the ring: later ones show that it was there.
            let at = pair.node(node).layout.log.start;
            pair.disk_mut(node).write_meta(at, &[0xff; 4096]);
        }
        _ => return Err("not a line of a trace".into()),
    }
    Ok(())
}

fn ask(pair: &mut Pair, node: usize, letter: &str, asks: ClientAsks) -> Outcome {
    let [letter] = letter.as_bytes() else { return Err("a request is named by one letter".into()) };
    if pair.process(node).is_none_or(|process| process.device.is_none()) {
        return Err("its device is not open".into());
    }
    pair.ask(node, u64::from(*letter), asks, *letter);
    Ok(())
}

fn find_op(pair: &Pair, node: usize, which: &[&str]) -> Result<usize, String> {
    let there = pair.node(node);
    let wanted = which.get(1).map(|text| range(text)).transpose()?;
    let fits = |job: &crate::pair::Job| {
        which.first() == Some(&story::job_kind(job, there))
            && (wanted.is_none() || story::job_range(job) == wanted)
    };
    there.ops.iter().position(|op| fits(&op.job)).ok_or_else(|| {
        let kinds: Vec<_> = there.ops.iter().map(|op| story::job_kind(&op.job, there)).collect();
        format!("its disk works on: {}", kinds.join(", "))
    })
}

/// Where one line of the script stands for several things, each gets a line of its own.
fn tell(pair: &mut Pair, node: usize, what: String) {
    if let Some(story) = &mut pair.story {
        story.push(format!("  {} {what}", NAMES[node]));
    }
}

fn finish(
    pair: &mut Pair,
    node: usize,
    number: usize,
    result: Result<(), DiskFailure>,
    telling: bool,
) {
    if telling {
        let there = pair.node(node);
        let job = &there.ops[number].job;
        let place =
            story::job_range(job).map_or(String::new(), |at| format!(" {}", story::place(at)));
        let what = format!("done {}{place}", story::job_kind(job, there));
        tell(pair, node, what);
    }
    pair.finish(node, number, result);
}

fn deliver(pair: &mut Pair, node: usize, telling: bool) -> Outcome {
    if pair.process(node).is_none() {
        return Err("nobody is there".into());
    }
    if telling && let Some(next) = pair.towards[node].front() {
        let what = format!("gets {}", story::brief(next));
        tell(pair, node, what);
    }
    pair.deliver(node);
    Ok(())
}

/// Disks before the link, alpha before beta, until nothing is under way.
fn settle(pair: &mut Pair) -> Outcome {
    for _ in 0..STEPS_MAX {
        let busy = (0..2).find(|&node| !pair.node(node).ops.is_empty());
        let awaited = (0..2).find(|&node| !pair.towards[node].is_empty());
        match (busy, awaited) {
            (Some(node), _) => finish(pair, node, 0, Ok(()), true),
            (None, Some(node)) => deliver(pair, node, true)?,
            (None, None) => return Ok(()),
        }
    }
    Err("it never comes to rest".into())
}

/// What an observer would see now.
fn show(pair: &mut Pair) {
    for (node, name) in NAMES.iter().enumerate() {
        let mut line = format!("    {name:5} ");
        match pair.process(node) {
            Some(process) => {
                let status = process.replica.status(pair.now);
                let peer = &status.peers[0];
                let known = story::register(&status.register);
                let _ = write!(line, "{}, {}; {known}", status.role, status.data);
                let _ = write!(line, "; {} {}", peer.node, peer.state);
                let _ = write!(line, ", lacks {}", story::size(peer.dirty_bytes));
                for wait in &status.waits {
                    let _ = write!(line, "; a request waits for {}", wait.what);
                }
            }
            None => line += "off",
        }
        let _ = write!(line, "; data {}", story::letters(pair.node(node).disk.live()));
        if let Some(story) = &mut pair.story {
            story.push(line);
        }
    }
}

fn promote(options: &[&str]) -> Result<Command, String> {
    let known = ["old-primary-is-off", "allow-data-loss", "alone"];
    let given = known.map(|option| options.contains(&option));
    if options.iter().any(|option| !known.contains(option)) {
        return Err(format!("the options are {}", known.join(", ")));
    }
    let [old_primary_is_off, allow_data_loss, alone] = given;
    Ok(Command::Promote { old_primary_is_off, allow_data_loss, alone })
}

fn number_of(name: &str) -> Result<usize, String> {
    NAMES.iter().position(|known| *known == name).ok_or_else(|| format!("{name} is no node"))
}

fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix('K') {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    digits.parse::<u64>().map(|number| number * unit).map_err(|_| format!("{text} is no size"))
}

fn range(text: &str) -> Result<ByteRange, String> {
    let (start, length) = text.split_once('+').ok_or("a range is start+length")?;
    Ok(ByteRange::new(bytes(start)?, bytes(length)?))
}
