#!/bin/bash
# The watchdog that the guard feeds, on a real kernel with a (virtual) i6300esb and with softdog. It is
# driven by `hold-address`, the daemon's own code for an address and its guard. Runs in a guest:
#
#   tests/vm/run --watchdog --env HOLD=/path/to/hold-address tests/vm/watchdog.sh lives
#   tests/vm/run --watchdog --env HOLD=/path/to/hold-address tests/vm/watchdog.sh fires
#
#   tests/vm/run --tco --env HOLD=/path/to/hold-address tests/vm/watchdog.sh short
#
# `short` asks an iTCO for less than it takes: it gets the least, and status says that it is too long.
# `lives` ends with 0: no reset in a pause of the lease, at a killed process, its replacement, an orderly
# end. `fires` stops process and guard together: the machine must end before the script does (125).
set -Eeu
: "${HOLD:?set HOLD to the program hold-address}"
work=/run/watchdog
# Emulated processors are slow: a lease of 3 s has a watchdog of 3 s.
lease_ms=3000
[ "$1" != short ] || lease_ms=1000
mkdir -p "$work"
fail() { echo "FAILED: $*"; tail -n 20 "$work"/log | sed 's/^/  /'; exit 1; }
. "$(dirname "$0")/waiting.sh"
state() { cat "/sys/class/watchdog/${device##*/}/$1"; }
guard() { pgrep -f "guard $work" | head -n 1; }
start() {
  : > "$work/log"
  rm -f "$work/orders"; mkfifo "$work/orders"
  "$HOLD" 10.9.0.100/24 dev0 $lease_ms "$work" "$device" < "$work/orders" >> "$work/log" 2>&1 &
  holder=$!
  exec {orders}> "$work/orders"
  wait_for 30 "the address" grep -q there "$work/log"
}

ip link add dev0 type veth peer name dev1
ip addr add 10.9.0.1/24 dev dev0
ip link set dev1 up; ip link set dev0 up
if [ "$1" = short ]; then
  modprobe -a lpc_ich i2c_i801 iTCO_wdt
  wait_for 10 "an iTCO" grep -q iTCO_wdt /sys/class/watchdog/watchdog0/identity
  device=/dev/watchdog0
  start
  step "wanted for a lease of 1 s, and got $(state timeout) s of $(state identity)"
  # Its ticks are 0.6 s, and it takes no fewer than four (drivers/watchdog/iTCO_wdt.c of 6.1).
  [ "$(state timeout)" = 3 ] || fail "not 3 s"
  grep -q "is_armed: true.*too long: it fires 3 s after it was fed last" "$work/log" || fail "not told"
  sleep 8
  exec {orders}>&-
  wait_for 20 "the orderly end" grep -q gone "$work/log"
  step "the machine lives on with it"
  exit 0
fi

modprobe softdog soft_margin=60
ls /dev/watchdog*
for number in 0 1; do
  [ "$(cat /sys/class/watchdog/watchdog$number/identity)" != "i6300ESB timer" ] || device=/dev/watchdog$number
done
: "${device:?there is no i6300esb}"
start
step "armed: $(state identity), time-out $(state timeout) s, $(state state)"
[ "$(state state)" = active ] || fail "it is not armed"
[ "$(state timeout)" = 3 ] || fail "its time-out is $(state timeout) s"

if [ "$1" = fires ]; then
  step "process and guard are stopped together"
  kill -STOP "$holder" "$(guard)"
  sleep 30
  fail "the machine still runs 30 s later"
fi

kill -STOP "$holder"
sleep 8
if ip addr show dev dev0 | grep -q 10.9.0.100; then fail "the address is there"; fi
step "the process was stopped for 8 s: withdrawn by its guard, no reset"
kill -CONT "$holder"
wait_for 10 "the address to come back" bash -c 'ip addr show dev dev0 | grep -q 10.9.0.100'
old=$(guard)
kill -KILL "$holder"
sleep 8
[ "$(state state)" = active ] || fail "it was switched off"
step "the process was killed 8 s ago: its guard lives, no reset"
exec {orders}>&-
start
[ "$(guard)" != "$old" ] || fail "the old guard still runs"
sleep 5
step "another process and another guard: no reset"
kill -KILL "$(guard)"
sleep 8
[ -n "$(guard)" ] || fail "there is no guard"
[ "$(state state)" = active ] || fail "it is not armed"
step "the guard was killed and is back, no reset"
exec {orders}>&-
wait_for 20 "the orderly end" grep -q gone "$work/log"
wait "$holder" || fail "it ended with $?"
[ "$(state state)" = inactive ] || fail "it is still armed after an orderly end"
[ -z "$(guard)" ] || fail "a guard is left"
sleep 6
step "an orderly end switched it off, and nothing is left"

# softdog, and what status says of one that is in use.
for number in 0 1; do
  [ "$(cat /sys/class/watchdog/watchdog$number/identity)" != "Software Watchdog" ] || device=/dev/watchdog$number
done
start
[ "$(state timeout)" = 3 ] || fail "softdog has $(state timeout) s"
"$HOLD" 10.9.0.101/24 dev0 $lease_ms "$work/second" "$device" < /dev/null > "$work/second.log" 2>&1 || true
grep -q "is in use by another program" "$work/second.log" || fail "not told that it is in use: $(cat "$work/second.log")"
step "softdog: $(state state), and who comes second is told: $(grep -o "/dev/watchdog.*" "$work/second.log" | head -n 1)"
exec {orders}>&-
wait_for 20 "the orderly end" grep -q gone "$work/log"
