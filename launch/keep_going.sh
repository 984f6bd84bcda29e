#!/usr/bin/env bash
# Runs a command, and starts it again as long as it can continue from its last checkpoint.
# usage: bash launch/keep_going.sh [--retries N] COMMAND...
#
# Restarts: at most $ANYSAT_RESTARTS (100) after exit code 75 (stopped by a signal and saved, or hung), and at most N (3)
# after other failures, which may come from the death of another host; each after a pause of $ANYSAT_PAUSE seconds (10).
# SIGTERM and SIGINT are passed on as SIGTERM, so that the command saves; its exit code is then returned, and it is
# not run again.
set -euo pipefail

usage() { awk 'NR > 1 && !/^#( |$)/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; } # the lines above

if [ "${1:-}" = --help ]; then
  usage
  exit 0
fi
retries=3
if [ "${1:-}" = --retries ]; then
  retries=${2:-}
  [[ $retries =~ ^[0-9]+$ ]] || { echo "keep_going: --retries needs a number, and got '$retries'" >&2; exit 2; }
  shift 2
fi
[ $# -gt 0 ] || { echo "usage: bash launch/keep_going.sh [--retries N] COMMAND..." >&2; exit 2; }
pause=${ANYSAT_PAUSE:-10} restarts=${ANYSAT_RESTARTS:-100}

say() { echo "keep_going: $*" >&2; }

child='' stopping='' interrupted=''
forward() {
  stopping=yes interrupted=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap forward TERM INT

# Runs a command, and leaves its exit code in $code.
run() {
  "$@" &
  child=$!
  [ -z "$stopping" ] || kill -TERM "$child" 2>/dev/null || true # the signal came before $child was known
  # A signal ends bash's wait early, with the signal's number in place of the exit code.
  while :; do
    interrupted='' code=0
    wait "$child" || code=$?
    [ -n "$interrupted" ] || break
  done
  child=''
}

failures=0 stops=0
while :; do
  run "$@"
  [ "$code" -ne 0 ] || exit 0
  if [ -n "$stopping" ]; then
    say "stopped with exit code $code"
    exit "$code"
  elif [ "$code" -eq 75 ]; then
    [ "$stops" -lt "$restarts" ] || { say "exit code 75, and all $restarts restarts are used: does it hang?"; exit 75; }
    stops=$((stops + 1))
    say "exit code 75: starting again in $pause s"
  elif [ "$failures" -lt "$retries" ]; then
    failures=$((failures + 1))
    say "exit code $code: starting again in $pause s, $failures of $retries"
  else
    say "exit code $code, and all $retries retries are used"
    exit "$code"
  fi
  last=$code
  run sleep "$pause"
  [ -z "$stopping" ] || exit "$last"
done
