#!/bin/sh
# make_bench_peers.sh PYTHON FOLDER: the opponents' environments of bench/peers/README.md, neither the project's own.
set -eu
python=$1
envs=$2
shared="torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0"

make_one() {
    name=$1
    shift
    if [ -e "$envs/$name/.complete" ]; then
        return
    fi
    "$python" -m venv --clear "$envs/$name"
    # shellcheck disable=SC2086  # words of a list
    "$envs/$name/bin/python" -m pip install --quiet "$@" $shared
    touch "$envs/$name/.complete"
}

mkdir -p "$envs"
make_one trl-new trl==1.16.0
make_one trl-ppo trl==1.12.0 pandas
