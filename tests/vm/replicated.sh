#!/bin/bash
# Two replicatord in one guest with the kernel's own nbd driver: a file system on the device survives
# a restart of the daemon under a writer, and the loss of its primary. Runs in a guest, as root:
#
#   tests/vm/run --disk A --disk B --env BIN=/path/to/target/release tests/vm/replicated.sh
set -Eeu
: "${BIN:?set BIN to the directory with replicatord and replctl}"
PATH=$BIN:$PATH
work=/run/replicated
config=$work/replicator.toml
mount_point=$work/mnt
declare -A daemon=()

fail() {
  echo "FAILED: $*"
  for node in alpha beta; do
    replctl --config "$config" --node "$node" status 2>&1 | sed "s/^/  $node: /" || true
    tail -n 15 "$work/$node.log" | sed "s/^/  $node log: /" || true
  done
  dmesg | tail -n 15 | sed 's/^/  kernel: /'
  exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "waited for $what"
    sleep 0.1
  done
}

on() { local node=$1; shift; replctl --config "$config" --node "$node" "$@"; }
start() {
  replicatord --config "$config" --node "$1" >> "$work/$1.log" 2>&1 &
  daemon[$1]=$!
  wait_for 30 "$1 to answer" answers "$1"
}
answers() { on "$1" status | grep -q '^demo'; }
crash() { kill -KILL "${daemon[$1]}"; wait "${daemon[$1]}" 2> /dev/null || true; }
# The peer line of a primary's status says `current` when the peer has everything.
in_sync() { on "$1" status | grep -E '^demo .*in sync: alpha beta'; }
step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

mkdir -p "$work"/{alpha,beta}/dev "$mount_point" "$mount_point.beta"
modprobe nbd nbds_max=4
cat > "$config" <<TOML
cluster = "vm"
key = "$work/key"
[node.alpha]
address = "127.0.0.1:17788"
state_dir = "$work/alpha"
run_dir = "$work/alpha"
device_dir = "$work/alpha/dev"
[node.beta]
address = "127.0.0.1:27788"
state_dir = "$work/beta"
run_dir = "$work/beta"
device_dir = "$work/beta/dev"
[resource.demo]
disk.alpha = "/dev/vda"
disk.beta = "/dev/vdb"
attach = "nbd"
# Emulated processors are slow: silence means less here.
[timing]
peer_silence_ms = 5000
ping_interval_ms = 1000
TOML

on alpha init > /dev/null
on alpha create demo --origin > /dev/null
on beta create demo > /dev/null
start alpha
start beta
met() { on alpha status | grep -E '^  beta .* idle '; }
wait_for 30 "the nodes to meet" met
on alpha promote demo
device=$work/alpha/dev/demo
wait_for 30 "the device" test -b "$device"
wait_for 60 "the first resync" in_sync alpha
readlink -f "$device" | grep -q '^/dev/nbd' || fail "the device is not the kernel's nbd"
step "two nodes, in sync, $(readlink -f "$device")"

mkfs.ext4 -q -F "$device"
mount "$device" "$mount_point"
if refusal=$(on alpha demote demo 2>&1); then fail "demote went through while mounted"; fi
grep -q "$mount_point" <<< "$refusal" || fail "the refusal does not name the mount: $refusal"
step "demote is refused while mounted: $(grep -om1 "[^ ]*$mount_point[^ ]*" <<< "$refusal")"

# A writer whose every file is durable before its name is noted elsewhere.
writer() {
  local n=0
  while [ ! -e "$work/stop" ]; do
    n=$((n + 1))
    head -c 20000 /dev/urandom > "$mount_point/file$n" || exit 1
    sync -d "$mount_point/file$n" && sync -f "$mount_point/file$n" || exit 1
    sha256sum "$mount_point/file$n" >> "$work/sums"
  done
}
writer &
writing=$!
wait_for 60 "the writer" test -s "$work/sums"
crash alpha
before=$(wc -l < "$work/sums")
start alpha
wait_for 60 "the writer to go on after the restart" \
  bash -c "[ \$(wc -l < $work/sums) -gt $((before + 2)) ]"
touch "$work/stop"
wait "$writing" || fail "the writer saw an error"
wait_for 60 "the resync after the restart" in_sync alpha
step "daemon killed under a writer and restarted: no error, $(wc -l < "$work/sums") durable files"

# The old primary is lost with its file system mounted, as a dead machine would be.
crash alpha
if on beta promote demo 2> /dev/null; then fail "promotion without a word about the old primary"; fi
on beta promote demo --old-primary-is-off
device=$work/beta/dev/demo
wait_for 30 "the device on beta" test -b "$device"
e2fsck -fp "$device" > /dev/null || [ $? -le 1 ] || fail "fsck"
mount "$device" "$mount_point.beta"
sed "s,$mount_point/,$mount_point.beta/," "$work/sums" | sha256sum --quiet -c ||
  fail "a durable file is missing or different"
step "primary lost, beta promoted: fsck clean, every durable file there"

start alpha
wait_for 60 "the old primary to be resynced" in_sync beta
# R15: what entered the old device under the old tenure fails for ever.
if timeout 20 sh -c "echo late > $mount_point/late && sync -f $mount_point/late" 2> /dev/null; then
  fail "the old device still takes writes"
fi
umount -l "$mount_point"
step "the old primary is back as a secondary, its old device answers with errors"
umount "$mount_point.beta"
on beta demote demo
for node in alpha beta; do on $node down demo > /dev/null; done
size=$(on alpha dump demo --json | sed -n 's/.*"data_bytes": *\([0-9]*\).*/\1/p' | head -1)
cmp -n "${size:?}" /dev/vda /dev/vdb || fail "the disks differ"
step "the old primary is back and resynced: the disks are equal, $size bytes"
