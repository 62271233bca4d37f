#!/bin/sh
# bench_training.sh PYTHON PAIRS: every stage of bench.training on the pairs of a file, or on synthetic ones.
set -eu
python=$1
pairs=$2
folder=.bench-envs/inputs

mkdir -p "$folder"
if [ -z "$pairs" ]; then
    pairs=$folder/synthetic.jsonl.gz
    "$python" bench/peers/pairs.py --out "$pairs"
fi
"$python" bench/peers/models.py --pairs "$pairs" --out "$folder/models" --seed 0 >/dev/null
for stage in rm dpo ppo; do
    "$python" -m bench.training --stage "$stage" --pairs "$pairs" --model "$folder/models" \
        --json "bench/results/$stage.json" --docs docs/benchmarks.md
done
