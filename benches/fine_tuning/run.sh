#!/usr/bin/env bash
# The fine-tuning experiment of docs/results.md: a decoder of 10 million parameters with a tokeniser
# trained here, pre-trained on real text and fine-tuned on AG News and GSM8K, all parameters and LoRA;
# every method compared, and the tables of docs/results.md printed.
#
#   benches/fine_tuning/run.sh FOLDER AG_NEWS_CSV GSM8K_JSONL TEXT_FILE [JOBS] [PROGRAM]
#
# PYTHON (default python3) needs torch, transformers and tokenizers. Goes on where it stopped.
set -euo pipefail
folder=${1:?a folder for the run sets}
news=$(realpath "${2:?the CSV file of AG News headlines}")
maths=$(realpath "${3:?the JSONL file of GSM8K}")
text=$(realpath "${4:?a plain text to pre-train on besides}")
jobs=${5:-$(nproc)}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
program=$(realpath "${6:-${CARGO_TARGET_DIR:-$root/target}/release/simfluence}")
tasks=$root/data/tasks/fine_tuning
mkdir -p "$folder"
cd "$folder"

[ -s gsm8k.jsonl ] || "$python" "$root/benches/fine_tuning/prepare.py" \
    "$news" "$maths" "$text" .
"$program" record "$tasks/pretraining.toml" --data pretraining.jsonl --out pretraining --jobs 1
[ -d pretrained ] || "$program" save-model pretraining --run train-000 --out pretrained

for task in ag_news_full ag_news_lora gsm8k_full gsm8k_lora; do
    "$program" record "$tasks/$task.toml" --data "${task%_*}.jsonl" --out "$task" --jobs "$jobs"
    [ -s "$task.json" ] && continue
    "$program" compare "$task" --methods all --format json > "$task.json.part"
    mv "$task.json.part" "$task.json"
done

"$python" "$root/benches/fine_tuning/tables.py" .
