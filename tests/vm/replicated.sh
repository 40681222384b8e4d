#!/bin/bash
# Two replicatord in one guest with the kernel's own nbd driver: a file system on the device survives
# a restart of the daemon under a writer, and the loss of its primary. Runs in a guest, as root:
#
#   tests/vm/run --disk A --disk B --env BIN=/path/to/target/release tests/vm/replicated.sh
set -Eeu
work=/run/replicated
. "$(dirname "$0")/two_nodes.sh"

modprobe nbd nbds_max=4
two_nodes /dev/vda /dev/vdb nbd nbd

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
