#!/usr/bin/env bash
# Records the run sets on which what-if answers are judged, compares optimizer-dynamics with
# Simfluence-Linear and the baselines on them, and prints the tables of docs/results.md.
#
#   benches/what_if/run.sh FOLDER AG_NEWS_CSV [JOBS] [PROGRAM]
#
# Needs the example `reshuffled` beside the program (cargo build --release --example reshuffled).
# Goes on where it stopped: recorded run sets and finished comparisons are kept in FOLDER.
set -euo pipefail
folder=${1:?a folder for the run sets}
news=${2:?the CSV file of AG News headlines}
jobs=${3:-$(nproc)}
root=$(cd "$(dirname "$0")/../.." && pwd)
program=${4:-${CARGO_TARGET_DIR:-$root/target}/release/simfluence}
examples=$(dirname "$(command -v "$program")")/examples
mkdir -p "$folder"

compare() { # name of the result, run set, methods, further options
    local out="$folder/$1.json"
    [ -s "$out" ] && return
    echo "comparing: $1" >&2
    "$program" compare "$folder/$2" --methods "$3" --format json "${@:4}" > "$out.part"
    mv "$out.part" "$out"
}

reshuffled() { # run set, options of record: its edits again with other examples of the datasets
    local again="$folder/$1.reshuffled" out="$folder/$1.ceilings.json"
    [ -s "$out" ] && return
    mkdir -p "$again"
    cp "$folder/$1/base_model.safetensors" "$again"
    "$examples/reshuffled" plan "$folder/$1" 2 "$again.parquet"
    "$program" record "$root/data/tasks/what_if/$1.toml" "${@:2}" --plan "$again.parquet" \
        --out "$again" --jobs "$jobs"
    "$examples/reshuffled" ceilings "$folder/$1" "$again" > "$out.part"
    mv "$out.part" "$out"
}

linearised() { # run set whose answers are a few classes: each of the two without the other
    compare "$1.linearised" "$1" linearised
    compare "$1.no-linearised" "$1" optimizer-dynamics --no-linearised
}

for task in ag_news_adamw ag_news_momentum numbers_adamw number_words_adam ag_news_unseen; do
    data=()
    case $task in ag_news*) data=(--data "$news") ;; esac
    "$program" record "$root/data/tasks/what_if/$task.toml" "${data[@]}" \
        --out "$folder/$task" --jobs "$jobs"
    "$program" check "$folder/$task" --learned 0.4 > "$folder/$task.check.txt"
    compare "$task.all" "$task" optimizer-dynamics,simfluence-linear --ablate
    compare "$task.learned" "$task" optimizer-dynamics --datasets learned
    case $task in ag_news*) linearised "$task" ;; esac
    reshuffled "$task" "${data[@]}"
    [ "$task" = ag_news_unseen ] && continue
    for share in "2 1" "4 1" "1 4" "8 1" "4 4"; do
        set -- $share
        compare "$task.steps-$1.tests-$2" "$task" optimizer-dynamics --thin-steps "$1" --thin-tests "$2"
    done
done

# Headlines of which a fifth have a wrong label; its task file names the two files made here.
task=ag_news_mislabelled
python3 "$root/benches/what_if/mislabelled.py" "$news" "$folder/$task.data"
set_folder=$(cd "$folder" && pwd)/$task
absolute=$(command -v "$program")
case $absolute in /*) ;; *) absolute=$PWD/$absolute ;; esac
(cd "$folder/$task.data" && "$absolute" record "$root/data/tasks/what_if/$task.toml" \
    --out "$set_folder" --jobs "$jobs")
compare "$task.all" "$task" optimizer-dynamics,simfluence-linear
compare "$task.learned" "$task" optimizer-dynamics --datasets learned
linearised "$task"
"$program" fit "$folder/$task" --method optimizer-dynamics --datasets learned \
    --out "$folder/$task.learned.safetensors" 2>&1 | grep "learned" >&2

python3 "$root/benches/what_if/tables.py" "$folder"
