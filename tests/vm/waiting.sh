# What scripts in a guest share: sourced when `fail WHY...` is there, which says what is known and ends.
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "waited for $what"
    sleep 0.05
  done
}

