#!/bin/bash
# replicatord as a service of systemd, installed as tools/deploy/install does it, with a file system and
# a unit on its device: it starts, notifies, is restarted and killed under a writer without an I/O error,
# and when the machine goes down the unit stops first, then the mount, then the daemon. In a guest:
#
#   tests/vm/run --systemd --name alpha --disk A --disk B --env BIN=DIR tests/vm/systemd_daemon.sh
set -Eeu
: "${BIN:?set BIN to the directory with replicatord and replctl}"
work=/run/systemd-daemon
mount_point=/srv/demo

fail() {
  echo "FAILED: $*"
  replctl status 2>&1 | sed 's/^/  status: /' || true
  journalctl -u replicator -u demo -n 40 --no-pager -o cat | sed 's/^/  journal: /'
  dmesg | tail -n 10 | sed 's/^/  kernel: /'
  exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "waited for $what"
    sleep 0.1
  done
}

write_config() {
  mkdir -p /etc/replicator
  cat > /etc/replicator/replicator.toml <<TOML
cluster = "vm"
[node.alpha]
address = "127.0.0.1:17788"
[node.beta]
address = "127.0.0.1:27788"
state_dir = "$work/beta"
run_dir = "$work/beta"
device_dir = "$work/beta/dev"
[resource.demo]
disk.alpha = "/dev/vda"
disk.beta = "/dev/vdb"
attach = "nbd"
$1
# Emulated processors are slow: silence means less here.
[timing]
peer_silence_ms = 5000
ping_interval_ms = 1000
TOML
}

tools/deploy/install --bin "$BIN"
systemctl -q list-unit-files replicator.service > /dev/null || fail "the unit is not installed"
mkdir -p "$work/beta" "$mount_point" /run/systemd/system
write_config ""
replctl init > /dev/null
replctl create demo --origin > /dev/null
replctl --node beta create demo > /dev/null
systemd-run -q --unit=beta --property=Before=replicator.service replicatord --node beta
systemctl -q enable replicator
systemctl start replicator
systemctl -q is-active replicator replicator-handover || fail "the units are not active"
[ "$(systemctl show -P StatusText replicator)" = "1 of 1 resources up" ] || fail "no status text"
met() { replctl status | grep -E '^  beta .* idle '; }
wait_for 60 "the nodes to meet" met
replctl promote demo
wait_for 60 "the device" test -b /dev/replicator/demo
mkfs.ext4 -q -F /dev/replicator/demo
step "installed, enabled, started: $(systemctl show -P ActiveState,SubState --value replicator | xargs)"

# The unit of the service notes when it stops; the daemon, what it leaves mounted when it ends.
cat > /run/systemd/system/demo.service <<'UNIT'
[Unit]
Description=Writes durable lines
[Service]
ExecStart=/bin/bash -c 'n=0; while n=$((n + 1)); do echo $n >> /srv/demo/lines && sync -d /srv/demo/lines || exit 1; sleep 0.02; done'
ExecStopPost=/bin/sh -c 'echo demo ended: $SERVICE_RESULT >> /run/order'
UNIT
mkdir -p /run/systemd/system/replicator.service.d
cat > /run/systemd/system/replicator.service.d/test.conf <<'UNIT'
[Service]
ExecStopPost=/bin/sh -c 'echo daemon ended: $SERVICE_RESULT, $(grep -c " /srv/demo " /proc/mounts) mounts >> /run/order'
UNIT
systemctl daemon-reload
write_config 'services = [ { filesystem = "/srv/demo", type = "ext4" }, { systemd = "demo.service" } ]'
systemctl restart replicator
wait_for 90 "the services" systemctl -q is-active demo
grep -q " $mount_point ext4 " /proc/mounts || fail "not mounted"
[ "$(systemctl show -P Restart demo)" = no ] || fail "demo.service has no drop-in"
step "services run: $mount_point, demo.service"

# Restarts under the writer: it is the same process before and after, and writes on.
writer=$(systemctl show -P MainPID demo)
lines() { wc -l < "$mount_point/lines"; }
wait_for 30 "the first lines" test -s "$mount_point/lines"
goes_on() { [ "$(lines)" -gt $((before + 5)) ]; }
same_writer() { [ "$(systemctl show -P MainPID demo)" = "$writer" ] || fail "demo.service was restarted"; }
before=$(lines)
systemctl restart replicator
wait_for 60 "the writer to go on after systemctl restart" goes_on
same_writer
step "systemctl restart replicator: the same writer writes on"
before=$(lines)
systemctl kill -s KILL --kill-who=main replicator
wait_for 60 "the writer to go on after SIGKILL" goes_on
same_writer
[ "$(systemctl show -P NRestarts replicator)" -ge 1 ] || fail "systemd did not restart it"
wait_for 60 "systemd to call it active again" systemctl -q is-active replicator
step "daemon killed: systemd starts it again, the same writer writes on"

# H8: the machine goes down. The last word has a program that runs when nothing else does any more.
rm -f /run/order
mkdir -p /usr/lib/systemd/system-shutdown
cat > /usr/lib/systemd/system-shutdown/verdict <<'VERDICT'
#!/bin/bash
printf 'demo ended: success\ndaemon ended: success, 0 mounts\n' > /run/expected
if diff /run/expected /run/order > /dev/ttyS0 && ! grep -q ' /srv/demo ' /proc/mounts &&
  ! dmesg | grep -E 'I/O error|EXT4-fs error|nbd.*timed out' > /dev/ttyS0; then
  echo "       poweroff: the unit stopped, then it was unmounted, then the daemon ended" > /dev/ttyS0
  echo finished 0 > /dev/ttyS1
else
  dmesg | tail -n 10 > /dev/ttyS0
  echo finished 1 > /dev/ttyS1
fi
VERDICT
chmod +x /usr/lib/systemd/system-shutdown/verdict
step "poweroff"
systemctl --no-block poweroff
sleep infinity
