//! What can be typed, with the help that teaches it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use replicator::config::DEFAULT_PATH;

/// Looks after replicated block devices.
#[derive(Parser)]
#[command(name = "replctl", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// The node to act as or to ask; the host name by default.
    #[arg(long, global = true)]
    pub node: Option<String>,
    /// Answer in JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
A new pair of nodes:
  alpha# replctl init                         make the key; copy it to beta (scp, mode 0600)
  alpha# replctl create mariadb --origin      its disk holds the data
  beta#  replctl create mariadb               its disk will be overwritten
  both#  systemctl start replicator
  alpha# replctl promote mariadb              /dev/replicator/mariadb is there
Planned switch:   alpha# umount ...; replctl demote mariadb    beta# replctl promote mariadb
The other node is lost:                     beta# replctl promote mariadb --old-primary-is-off

Exit codes: 0 done (or nothing to do), 1 refused or failed, 2 wrong arguments or configuration,
3 the daemon cannot be asked, 4 status or check: something is not safe.";

#[derive(Subcommand)]
pub enum Command {
    /// Make the key of the cluster, or name the origin of a new resource.
    #[command(after_help = "\
Examples:
  replctl init                          make the key file, once in the life of a cluster
  replctl init mariadb --from alpha     alpha's disk holds the data of mariadb (run it on alpha,
                                        once, after `create` and while mariadb is down)")]
    Init {
        /// The resource whose origin is named.
        #[arg(requires = "from")]
        resource: Option<String>,
        /// The node that holds its data.
        #[arg(long, requires = "resource")]
        from: Option<String>,
    },
    /// Make the disk of this node a replica of a resource.
    Create(Create),
    /// Show the state of all or one resource, with a verdict in plain words.
    #[command(after_help = "\
Examples:
  replctl status
  replctl status mariadb --watch
  replctl status --json | jq '.resources[].verdict'
Exit code 4 when a resource is not safe: for monitoring.")]
    Status {
        /// Only this one.
        resource: Option<String>,
        /// Show it again every second until interrupted.
        #[arg(long, short)]
        watch: bool,
    },
    /// Start to run a resource in the daemon.
    Up {
        /// Which.
        resource: String,
    },
    /// Stop to run a resource; refused while it is in use.
    Down {
        /// Which.
        resource: String,
    },
    /// Become primary: serve clients and attach the block device here.
    #[command(after_help = "\
Without a flag nothing can be lost: it is refused unless this node has every acknowledged write
and the other node agrees. The flags are your word for what no node can know:
  --old-primary-is-off    I know that the other node does not serve: its machine is off, or its
                          daemon is stopped and stays so until it can connect
  --alone                 after a restart: do not wait for the other node (this node served last)
  --allow-data-loss       serve the data of this node though it may lack acknowledged writes; what
                          only the other node has is given up when it comes back")]
    Promote {
        /// Which.
        resource: String,
        /// The old primary is switched off, you know it.
        #[arg(long)]
        old_primary_is_off: bool,
        /// Serve these data although they may be old.
        #[arg(long)]
        allow_data_loss: bool,
        /// Do not wait for the other node after a restart.
        #[arg(long)]
        alone: bool,
    },
    /// Give the role of primary up; refused while the device is in use.
    Demote {
        /// Which.
        resource: String,
        /// Close the connections of NBD clients, and give up a block device that is broken, instead
        /// of refusing because of them. A mounted device is never taken away.
        #[arg(long)]
        drop_clients: bool,
    },
    /// Connect to the other node again after `disconnect`; bring it up to date at once though it
    /// was dropped often lately.
    Connect {
        /// Which.
        resource: String,
        /// Only to this node.
        #[arg(long)]
        peer: Option<String>,
    },
    /// Hold no connection to the other node until `connect`.
    Disconnect {
        /// Which.
        resource: String,
        /// Only to this node.
        #[arg(long)]
        peer: Option<String>,
    },
    /// Declare the data of this node bad: all of it will be copied from the other node.
    Invalidate {
        /// Which.
        resource: String,
    },
    /// Bring replicas up to date (it happens by itself; this is for more, or for waiting).
    #[command(after_help = "\
Examples:
  replctl resync mariadb --wait              wait for the running resync, with a progress bar
  replctl resync mariadb --full --wait       on the primary: copy everything to the other node
  replctl resync mariadb --discard           on a node that served on its own before the other was
                                             promoted by force: give up what only this node has")]
    Resync {
        /// Which.
        resource: String,
        /// Copy everything, whatever the bitmaps say (on the primary).
        #[arg(long, conflicts_with = "discard")]
        full: bool,
        /// Give up what diverged on this node.
        #[arg(long)]
        discard: bool,
        /// Only this node.
        #[arg(long)]
        peer: Option<String>,
        /// Wait until nothing is left to copy, with a progress bar.
        #[arg(long)]
        wait: bool,
        /// With --wait: give up after so many seconds (exit code 1).
        #[arg(long, requires = "wait")]
        timeout_s: Option<u64>,
    },
    /// Compare all copies with the primary's, block by block, while it serves; find bit rot.
    #[command(after_help = "\
Examples:
  replctl verify mariadb --wait              compare, with a progress bar, and say what differs
  replctl verify mariadb --repair --wait     and copy what differs again
  replctl verify mariadb --cancel            end one that is under way
The copies of all nodes that are in sync are read and hashed; clients go on, a verify yields to
them. Nothing is changed without --repair. With it the primary's copy is taken: a node whose copy
differs, or cannot be read in places, leaves the in-sync set, gets these blocks again, and comes
back; of several nodes one at a time. What the primary serves is never changed: when its disk is the
bad one, move the office first (replctl switchover), then repair from there.
It ends when a node is lost or the office moves. What it found stays in replctl status.
Exit codes: 0 started, with --wait: all is the same or repaired; 1 refused, or it ended early;
4 with --wait: copies differ or cannot be read.")]
    Verify {
        /// Which.
        resource: String,
        /// Copy blocks that differ again, from the primary.
        #[arg(long, conflicts_with = "cancel")]
        repair: bool,
        /// End a verify that is under way.
        #[arg(long, conflicts_with = "wait")]
        cancel: bool,
        /// Wait for its end, also for that of one that runs already; with a progress bar.
        #[arg(long)]
        wait: bool,
    },
    /// Make a volume larger, while it is used.
    #[command(after_help = "\
Extend the backing disk on every data node, then say it once, on the primary:
  alpha# lvextend -L +100G vg/mariadb         beta# lvextend -L +100G vg/mariadb
  alpha# replctl resize mariadb               as far as both have room
  alpha# resize2fs /dev/replicator/mariadb    what is on it grows like on any disk, also mounted
Each node moves its metadata to the new end of its disk and zeroes what was added; then clients see
the new size, without a pause and without a resync. Status shows how far it is. A node that is away
meanwhile does its part when it is back, if its disk was extended too. A volume never shrinks. Asked
on another node it names the primary; replctl history keeps what it did.
  --dry-run    say how large the volume is and how much room every node has
  --size 200G  only to this size")]
    Resize {
        /// Which.
        resource: String,
        /// To this size: bytes, or with K, M, G, T. As far as every node has room by default.
        #[arg(long, value_parser = bytes)]
        size: Option<u64>,
        /// Change nothing, say what there is.
        #[arg(long)]
        dry_run: bool,
    },
    /// Move a resource to another node, without loss.
    #[command(after_help = "\
Examples:
  replctl switchover mariadb             to the best other node
  replctl switchover mariadb --to beta
  replctl switchover mariadb --cancel    while it is under way: what was stopped for it comes back
It is refused, with the reason, unless the other node has every acknowledged write. Needs a witness:
without one it is demote here and promote there.")]
    Switchover {
        /// Which.
        resource: String,
        /// Whereto.
        #[arg(long)]
        to: Option<String>,
        /// Take a switchover back that is under way, as long as the office is not given up.
        #[arg(long, conflicts_with = "to")]
        cancel: bool,
    },
    /// Have a node become primary by force: acknowledged writes may be lost.
    #[command(after_help = "\
A failover that loses nothing happens by itself. This is for the case that it cannot:
  --allow-data-loss       the nodes that have everything are gone for ever: serve what TO has
  --old-primary-is-off    the old primary held its office without end (it was the only member in
                          sync) and is switched off for sure
What only the old primary has is reported when it comes back, and overwritten only on your word.")]
    Failover {
        /// Which.
        resource: String,
        /// The node that becomes primary.
        #[arg(long)]
        to: String,
        /// Serve these data although they may be old.
        #[arg(long, required = true)]
        allow_data_loss: bool,
        /// The old primary is switched off, you know it.
        #[arg(long)]
        old_primary_is_off: bool,
    },
    /// Stop all automatic failovers until `resume`.
    Pause,
    /// Let failovers happen again.
    Resume,
    /// Have a node hold no office: what it holds moves away as soon as that loses nothing.
    Standby {
        /// The node.
        name: String,
    },
    /// End a standby.
    Online {
        /// The node.
        name: String,
    },
    /// Start services that were stopped by `stop` or have failed; at once.
    Start {
        /// RESOURCE for all its services, RESOURCE/SERVICE for one.
        what: String,
    },
    /// Stop services until `start`, wherever the resource is primary; the data stay served.
    #[command(after_help = "\
Examples:
  replctl stop mariadb/mariadb.service   this one, and what comes after it in the list
  replctl stop mariadb                   all services of the resource")]
    Stop {
        /// RESOURCE for all its services, RESOURCE/SERVICE for one.
        what: String,
    },
    /// Stop services and start them again, on the primary.
    Restart {
        /// RESOURCE for all its services, RESOURCE/SERVICE for one.
        what: String,
    },
    /// Forget the failures of services on this node: they are tried again at once, and nothing
    /// speaks against this node any more.
    Clear {
        /// RESOURCE for all its services, RESOURCE/SERVICE for one.
        what: String,
    },
    /// Hands off the services of a resource (`on`): nothing is started, stopped or restarted.
    /// `off`: they are asked what they are, and looked after again.
    #[command(after_help = "\
An office that moves takes its services along all the same. Failovers of the data go on; use
replctl pause to stop those.")]
    Maintenance {
        /// Which.
        resource: String,
        /// on or off.
        #[arg(value_parser = ["on", "off"])]
        switch: String,
    },
    /// Without a witness: switch the other node off with its fence agent, have that confirmed, and
    /// take over what it served.
    #[command(after_help = "\
The node must be silent, and [node.NAME.fence] says how it is switched off. It counts as off only
when the agent's `off` succeeded, its `status` says off, and nothing answers at any address of the
node; then this node becomes primary of what the other was primary of and is recorded as such.
With fencing = \"auto\" all of this happens by itself after fence_after_ms; a primary that lost its
peer then suspends writes until the peer is off. When the agent cannot do it, switch the node off
yourself and say so with --is-off; one that still accepts connections is not believed to be off.")]
    Fence {
        /// The node to be switched off.
        name: String,
        /// You have switched it off yourself: the agent is not called.
        #[arg(long)]
        is_off: bool,
    },
    /// Change who votes: a dead node replaced, a witness added or removed.
    #[command(after_help = "\
A node that gets another address needs none of this: write the new address into the file of every
node, restart the daemon of that node, then the others, one after the other. Nodes prove their
names, not their addresses, and tell where they are: those with the old file hear the moved one
meanwhile.")]
    Node {
        #[command(subcommand)]
        action: NodeAction,
    },
    /// Go on without nodes that are gone for ever, when a majority is.
    #[command(after_help = "\
Example, the machines of beta and gamma having burnt:
  alpha# replctl recover --without beta,gamma --they-are-gone-for-ever
On a data node that is left: a new epoch of the cluster begins with those. It is refused while one
of the named nodes is heard, and while a majority is there: then replctl node replace is right. If a
named node does come back it is refused and stops. A resource whose last member is gone needs a
replctl failover --allow-data-loss besides. New machines come in by replctl node replace.")]
    Recover {
        /// The nodes that are gone.
        #[arg(long, value_delimiter = ',', required = true)]
        without: Vec<String>,
        /// Your word for it: were one of them alive and only cut off, both sides would serve.
        #[arg(long, required = true)]
        they_are_gone_for_ever: bool,
    },
    /// Change what the cluster agreed on (lease, resources, voters) into what the file says.
    #[command(after_help = "\
The register is the truth, the file a request: daemons go by the register. Write the same file on
every node, restart the daemons one after the other, then: replctl apply --dry-run; replctl apply.
Exit code 1 when a difference is left that cannot be changed now; each says why and what to do.")]
    Apply {
        /// Only show in what file and register differ.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what happened to the register, every change with its cause, and volumes that grew.
    History {
        /// Only of this resource.
        resource: Option<String>,
        /// How many of the latest.
        #[arg(long, short, default_value_t = 20)]
        number: usize,
    },
    /// Say why things are as they are: for every node why it is not primary, with the rule, the
    /// values compared, since when, and what would change it.
    Explain {
        /// Only this resource.
        resource: Option<String>,
    },
    /// Show the events of the daemon.
    Events {
        /// Go on with those to come until interrupted.
        #[arg(long, short)]
        follow: bool,
    },
    /// Decode the metadata on the disk of this node. Never writes.
    Dump {
        /// Which.
        resource: String,
        /// Ask the daemon instead of reading the disk.
        #[arg(long)]
        live: bool,
    },
    /// Check the configuration file, the key and the disks.
    Check {
        /// Ask the fence agents too (`metadata`, `monitor`): whether they are installed, have the
        /// options they need, and reach their devices. Switches nothing.
        #[arg(long)]
        fence: bool,
    },
}

/// What becomes of a voter.
#[derive(Subcommand)]
pub enum NodeAction {
    /// Admit the machine that now answers as this node in place of the recorded one.
    #[command(after_help = "\
For a node whose state directory, disk or machine is new (status: has no vote). On the new machine:
the configuration and the key, for a data node replctl create RESOURCE, then start replicatord. Then
on another data node: replctl node replace NODE. A data node's disk is resynced by itself.")]
    Replace {
        /// The node.
        name: String,
    },
    /// Give a node that is new in the configuration a vote.
    #[command(after_help = "\
For a witness, or for a data node that is a third copy. The new machine: the configuration with the
new node and the key, for a data node replctl create RESOURCE --size BYTES (as status --json says of
the others: size_bytes), then start replicatord. Every other node: the new file, restart
replicatord, one after the other. Then on a data node: replctl node add NODE.")]
    Add {
        /// The node.
        name: String,
    },
    /// Take a node's vote away; then it may go from the configuration.
    #[command(after_help = "\
At least three voters stay. A data node is primary of nothing (replctl switchover) and stopped for
good before it goes. Afterwards take it out of the file of every node and restart the daemons, one
after the other.")]
    Remove {
        /// The node.
        name: String,
    },
}

#[derive(Args)]
#[command(after_help = "\
The data area starts at the first byte of the disk; the metadata lie at its end, or in the file or
partition that `metadata` in the configuration names. A disk that holds something is refused:
  --origin           the data on it are the ones to keep; a file system stays in place. When it
                     fills the disk, put the metadata elsewhere (the refusal says how)
  --force ext4       destroy the ext4 file system that is on it; say exactly what is there
Both nodes need the same size: create the smaller disk first and give its size to the other one
with --size. All of this needs the daemon of this node stopped, or the resource down.")]
pub struct Create {
    /// The resource.
    pub resource: String,
    /// This disk holds the data; exactly one node says so.
    #[arg(long)]
    pub origin: bool,
    /// All disks hold exactly the same data already; recorded, and on your word.
    #[arg(long)]
    pub assume_equal: bool,
    /// What may be destroyed, in the words of the refusal: ext4, lvm, replicator, data, ...
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub force: Vec<String>,
    /// Check that the metadata go to this file (the configuration must say so too).
    #[arg(long, value_name = "FILE")]
    pub external: Option<PathBuf>,
    /// Size of the data area: bytes, or with K, M, G, T.
    #[arg(long, value_parser = bytes)]
    pub size: Option<u64>,
    /// Block size in bytes: 512 to 4096; the disk's sector size by default.
    #[arg(long, value_name = "BYTES")]
    pub block_size: Option<u32>,
    /// Tells this resource from an earlier one of the same name; the same on every node.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub life: String,
}

/// A number of bytes with an optional unit, in powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB") {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        unit => return Err(format!("{unit} is no unit; write 512M, 20G, 1T or plain bytes")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("20G"), Ok(20 << 30));
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert!(bytes("7X").is_err());
        assert!(bytes("99999999999T").is_err());
    }
}
