# Two replicatord in one guest: sourced by scripts that run there as root, with BIN, the directory with
# replicatord and replctl, and with `work`, a directory of their own.
: "${BIN:?set BIN to the directory with replicatord and replctl}"
PATH=$BIN:$PATH
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
. "$(dirname "${BASH_SOURCE[0]}")/waiting.sh"

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
met() { on alpha status | grep -E '^  beta .* idle '; }

# two_nodes DISK-OF-ALPHA DISK-OF-BETA ATTACH KIND: alpha serves $device, which is one of /dev/KIND*
two_nodes() {
  mkdir -p "$work"/{alpha,beta}/dev "$mount_point" "$mount_point.beta"
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
disk.alpha = "$1"
disk.beta = "$2"
attach = "$3"
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
  wait_for 30 "the nodes to meet" met
  on alpha promote demo
  device=$work/alpha/dev/demo
  wait_for 30 "the device" test -b "$device"
  wait_for 60 "the first resync" in_sync alpha
  readlink -f "$device" | grep -q "^/dev/$4" || fail "the device is not $4"
  step "two nodes, in sync, $(readlink -f "$device")"
}
