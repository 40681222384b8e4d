#!/bin/bash
# A volume grows (O9) under a mounted ext4 with a writer, as an operator does it: the disks are extended,
# one command is said, the file system follows. Runs in a guest, as root:
#
#   tests/vm/run --env BIN=/path/to/target/release tests/vm/resize.sh nbd|fuse
set -Eeu
work=/run/resize
. "$(dirname "$0")/two_nodes.sh"

attach=$1
case $attach in
  nbd) kind=nbd ;;
  fuse) kind=loop ;;
esac
modprobe -a loop fuse ext4
modprobe nbd nbds_max=4
mkdir -p "$work"
# Loop devices grow as logical volumes do. What is added is no zeroes.
declare -A disk=()
for node in alpha beta; do
  truncate -s 64M "$work/$node.img"
  disk[$node]=$(losetup --find --show "$work/$node.img")
done
extend() {
  local node
  for node in alpha beta; do
    head -c "$1" /dev/urandom >> "$work/$node.img"
    losetup --set-capacity "${disk[$node]}"
  done
}
two_nodes "${disk[alpha]}" "${disk[beta]}" "$attach" "$kind"

mkfs.ext4 -q -F "$device"
mount "$device" "$mount_point"
free_kib() { df --output=avail "$mount_point" | tail -n 1; }
durable_file() {
  head -c "$2" /dev/urandom > "$mount_point/$1"
  sync -d "$mount_point/$1" && sync -f "$mount_point/$1" && sha256sum "$mount_point/$1" >> "$work/sums"
}
durable_file before 20M
writer() {
  local n=0
  while [ ! -e "$work/stop" ]; do
    n=$((n + 1))
    durable_file "file$n" 4000 || exit 1
    echo "$n" > "$work/written.new" && mv "$work/written.new" "$work/written"
  done
}
writer &
writing=$!
written_more_than() { [ "$(cat "$work/written" 2> /dev/null || echo 0)" -gt "$1" ]; }
wait_for_writer() {
  local before
  before=$(cat "$work/written" 2> /dev/null || echo 0)
  wait_for 60 "the writer to go on" written_more_than $((before + 2))
}

# grows BYTES: by so much on each disk; what follows the command finds the device larger.
grows() {
  local old free new
  wait_for_writer
  old=$(blockdev --getsize64 "$device") free=$(free_kib)
  extend "$1"
  on alpha resize demo
  new=$(blockdev --getsize64 "$device")
  [ "$new" -gt $((old + $1 - (2 << 20))) ] || fail "the device has $new bytes after $old"
  resize2fs "$device" > "$work/resize2fs" 2>&1 || fail "resize2fs: $(cat "$work/resize2fs")"
  [ "$(free_kib)" -gt $((free + ($1 >> 11))) ] || fail "$(free_kib) KiB are free after $free"
  wait_for_writer
  step "from $old to $new bytes, under a writer: resize2fs went through"
}
grows $((64 << 20))
# More than there was room for before.
durable_file after 60M
in_sync alpha > /dev/null || fail "beta is not in sync"

# The next daemon goes on with a device of the new size, and that one grows too.
if [ "$attach" = nbd ]; then
  crash alpha
  start alpha
  wait_for 60 "the resync after the restart" in_sync alpha
  grows $((32 << 20))
fi
touch "$work/stop"
wait "$writing" || fail "the writer saw an error"
size=$(blockdev --getsize64 "$device")
umount "$mount_point"
e2fsck -fn "$device" > "$work/fsck" 2>&1 || fail "e2fsck: $(cat "$work/fsck")"
on alpha demote demo
on beta promote demo
device=$work/beta/dev/demo
wait_for 30 "the device on beta" test -b "$device"
[ "$(blockdev --getsize64 "$device")" = "$size" ] || fail "beta has another size"
mount "$device" "$mount_point"
sha256sum --quiet -c "$work/sums" || fail "a durable file is missing or different"
! dmesg | grep -q 'I/O error' || fail "the kernel saw an I/O error"
step "handed over: beta has $size bytes and $(wc -l < "$work/sums") whole files"
umount "$mount_point"
on beta demote demo
for node in alpha beta; do on $node down demo > /dev/null; done
cmp -n "$size" "${disk[alpha]}" "${disk[beta]}" || fail "the disks differ"
step "the disks are equal, $size bytes"
