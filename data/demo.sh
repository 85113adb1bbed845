#!/usr/bin/env bash
# The main job on a real model: record real fine-tuning runs of the number tasks, fit, compare on
# held-out runs, ask one what-if and verify it by really retraining. Run again, it reuses what is
# there.
#
# Usage: data/demo.sh PROGRAM FOLDER JOBS
set -euo pipefail
program=$1 folder=$2 jobs=$3
here=$(cd "$(dirname "$0")" && pwd)
runs=$folder/numbers pictures=$folder/pictures
mkdir -p "$pictures"

phases=()
phase() { # NAME COMMAND…
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name" >&2
  "$@"
  phases+=("$(printf '%-10s %5.1f min' "$name" "$(awk "BEGIN { print ($SECONDS - $start) / 60 }")")")
}

phase record "$program" record "$here/tasks/numbers.toml" --out "$runs" --jobs "$jobs"
# Without learning every comparison is noise: stops here, with an explanation, if it is missing.
phase check "$program" check "$runs" --learned 0.5
phase fit "$program" fit "$runs" --out "$folder/simfluence-linear.safetensors"
phase compare "$program" compare "$runs" --plots "$pictures"
phase whatif "$program" whatif "$runs" --run ordinary-000 --drop succeed-digits --verify \
  --simulator "$folder/simfluence-linear.safetensors" --picture "$pictures/whatif.svg"

printf '\nMinutes per phase\n'
printf '  %s\n' "${phases[@]}"
printf '\nPictures are in %s:\n' "$pictures"
ls "$pictures"
