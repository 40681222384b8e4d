#!/bin/bash
# The attach by the kernel's own nbd driver. Runs in a guest, as root:
#
#   tests/vm/run --env SERVER=/path/of/nbd-attach-file tests/vm/kernel_attach.sh [CHECK...]
#
# SERVER is run as `SERVER serve FILE KEY=VALUE...`, prints `ready PATH DEVICE KIND new|adopted`, and
# knows the signals of nbd-attach-file: TERM detaches, USR1 fails all I/O, USR2 replaces the stream.
# Without CHECK all run: detach_refused killed_under_writer stream_replaced partitions discard
# failed_when_deposed leftovers_failed fuse_on_old_kernel.
set -Eeuo pipefail
: "${SERVER:?set SERVER to the program that serves a file}"

work=/run/attach
link=$work/dev/vm
mount_point=$work/mnt
settings=(resource=vm uuid=vm-0001 "runtime=$work/run" "devices=$work/dev")
server=

fail() {
  echo "FAILED: $*"
  sed 's/^/  server: /' "$work/log" 2>/dev/null || true
  dmesg | tail -n 20 | sed 's/^/  kernel: /'
  exit 1
}
. "$(dirname "$0")/waiting.sh"

# start EXPECTED-ORIGIN [KEY=VALUE...]
start() {
  local expected=$1
  shift
  : > "$work/out"
  "$SERVER" serve "$work/disk" "${settings[@]}" "$@" > "$work/out" 2>> "$work/log" &
  server=$!
  wait_for 20 "the device to be ready" grep -q ^ready "$work/out"
  read -r _ _ device kind origin < "$work/out"
  [ "$origin" = "$expected" ] || fail "the device is $origin, not $expected"
}

crash() {
  kill -KILL "$server"
  wait "$server" 2> /dev/null || true
}

detach() {
  kill -TERM "$server"
  wait "$server" || fail "the detach"
  [ ! -e "$link" ] || fail "the link is still there"
}

format() { mkfs.ext4 -q -F "$link"; mount "$link" "$mount_point"; }

# Files with fsync one after the other, until the file `stop` exists; the first error ends it.
write_files() {
  local number=0
  while [ ! -e "$work/stop" ]; do
    number=$((number + 1))
    seq "$number" $((number + 3000)) | dd of="$mount_point/file-$number" bs=8k conv=fsync status=none ||
      { echo "file-$number" > "$work/error"; return 1; }
    echo "$number" > "$work/written"
  done
}

start_writer() {
  rm -f "$work"/{stop,error,written}
  echo 0 > "$work/written"
  write_files 2> "$work/writer.log" &
  writer=$!
}

written_more_than() { [ -e "$work/error" ] || [ "$(cat "$work/written")" -gt "$1" ]; }

wait_for_writer() {
  local before
  before=$(cat "$work/written")
  wait_for 30 "the writer to go on" written_more_than $((${before:-0} + 5))
  [ ! -e "$work/error" ] || fail "the writer met an error at $(cat "$work/error"): $(cat "$work/writer.log")"
}

# Ends the writer and compares all it wrote with what a fresh mount gives.
check_writer() {
  local number count
  touch "$work/stop"
  wait "$writer" || fail "the writer: $(cat "$work/writer.log")"
  count=$(cat "$work/written")
  umount "$mount_point"
  mount "$link" "$mount_point"
  for number in $(seq "$count"); do
    cmp -s "$mount_point/file-$number" <(seq "$number" $((number + 3000))) || fail "file-$number differs"
  done
  umount "$mount_point"
  e2fsck -fn "$link" > "$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
  ! dmesg | grep -q 'I/O error' || fail "the kernel saw an I/O error"
  echo "  $count files"
}

detach_refused() {
  start new attach=nbd
  [ "$kind" = nbd ] || fail "kind $kind"
  [ "$(cat "/sys/block/$device/backend")" = vm-0001 ] || fail "no identity in sysfs"
  wait_for 20 "io_timeout" grep -qx 1000 "/sys/block/$device/queue/io_timeout"
  wait_for 20 "max_sectors_kb" grep -qx 1024 "/sys/block/$device/queue/max_sectors_kb"
  format
  kill -TERM "$server"
  wait_for 20 "a refusal that names the mount" grep -q "$device is mounted on $mount_point" "$work/log"
  touch "$mount_point/still-alive"
  umount "$mount_point"
  exec 9< "$link"
  kill -TERM "$server"
  wait_for 20 "a refusal that names the process" grep -q "open in process $$ " "$work/log"
  exec 9<&-
  detach
  ! cat "/sys/block/$device/pid" 2> /dev/null || fail "the device is still configured"
}

killed_under_writer() {
  start new attach=auto delay-ms=2
  [ "$kind" = nbd ] || fail "auto chose $kind although the kernel has nbd"
  local old=$device round
  format
  start_writer
  for round in 1 2 3; do
    wait_for_writer
    crash
    start adopted attach=auto delay-ms=2
    [ "$device" = "$old" ] || fail "another device: $device"
  done
  wait_for_writer
  check_writer
  detach
}

stream_replaced() {
  start new attach=nbd delay-ms=2
  format
  start_writer
  for round in 1 2 3; do
    wait_for_writer
    kill -USR2 "$server"
    wait_for 20 "a new stream" eval "[ \$(grep -c reconnected $work/out) = $round ]"
  done
  wait_for_writer
  check_writer
  detach
}

partitions() {
  start new attach=nbd
  printf 'label: gpt\nsize=64MiB\nsize=64MiB\n' | sfdisk -q "$link"
  wait_for 20 "the links of two partitions" test -b "${link}p1" -a -b "${link}p2"
  mkfs.ext4 -q "${link}p2"
  mount "${link}p2" "$mount_point"
  kill -TERM "$server"
  wait_for 20 "a refusal that names the partition" grep -q "${device}p2 is mounted on" "$work/log"
  umount "$mount_point"
  crash
  start adopted attach=nbd
  wait_for 20 "the links after a crash" test -b "${link}p1"
  sfdisk -q --delete "$link"
  wait_for 20 "the links to go" test ! -e "${link}p1"
  detach
}

discard() {
  start new attach=nbd
  format
  dd if=/dev/urandom of="$mount_point/big" bs=1M count=64 conv=fsync status=none
  rm "$mount_point/big"
  sync -f "$mount_point"
  local before after
  before=$(stat -c %b "$work/disk")
  fstrim "$mount_point"
  after=$(stat -c %b "$work/disk")
  [ "$after" -lt $((before - 100000)) ] || fail "fstrim freed too little: $before to $after blocks"
  umount "$mount_point"
  detach
}

# A file that is open and whose next sync must fail.
expect_io_error() {
  ! dd if=/dev/zero of="$mount_point/file" bs=4k count=1 conv=fsync,notrunc status=none 2> /dev/null ||
    fail "a write was acknowledged by nobody"
}

failed_when_deposed() {
  start new attach=nbd
  format
  touch "$mount_point/file"
  sync -f "$mount_point"
  kill -USR1 "$server"
  wait "$server" || fail "failing the device"
  grep -q "still in use: $device is mounted on" "$work/out" || fail "the mount was not reported"
  expect_io_error
  umount "$mount_point"
  dmesg --clear
}

leftovers_failed() {
  start new attach=nbd
  format
  touch "$mount_point/file"
  sync -f "$mount_point"
  crash
  "$SERVER" fail "${settings[@]}" > "$work/leftovers"
  grep -q "nbd leftover $device: removed; $device is mounted on" "$work/leftovers" ||
    fail "not reported: $(cat "$work/leftovers")"
  expect_io_error
  umount "$mount_point"
  dmesg --clear
}

# This kernel cannot send FUSE requests again: after a crash the old device must be removed, reported
# and replaced, and never hang.
fuse_on_old_kernel() {
  modprobe fuse
  modprobe loop
  start new attach=fuse
  [ "$kind" = fuse ] || fail "kind $kind"
  local old=$device
  format
  touch "$mount_point/file"
  sync -f "$mount_point"
  crash
  if [ "$(uname -r | cut -d. -f1)" -gt 6 ] || [ "$(uname -r | cut -d. -f2)" -ge 9 ]; then
    start adopted attach=fuse
    umount "$mount_point"
  else
    start new attach=fuse
    [ "$device" != "$old" ] || fail "the device of a dead server was used again"
    grep -q "fuse leftover $old: removed; $old is mounted on" "$work/log" || fail "not reported"
    expect_io_error
    umount "$mount_point"
  fi
  detach
}

mkdir -p "$work/mnt"
modprobe nbd
checks=("$@")
[ $# -gt 0 ] || checks=(detach_refused killed_under_writer stream_replaced partitions discard
  failed_when_deposed leftovers_failed fuse_on_old_kernel)
for check in "${checks[@]}"; do
  rm -f "$work/disk" "$work/log"
  truncate -s 256M "$work/disk"
  begin=$SECONDS
  "$check"
  echo "ok $check ($((SECONDS - begin)) s)"
done
