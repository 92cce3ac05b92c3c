#!/usr/bin/env bash
# Run the GPU tests, then every benchmark at the sizes of the targets in docs/performance.md.
# Records go to results/bench/cuda; steps that failed are listed at the end.
#   bash scripts/bench/gpu.sh                     all steps
#   bash scripts/bench/gpu.sh network sampling    some of them
#   PEER=DIR GPUS=8 PYTHON=python3 bash scripts/bench/gpu.sh
# PEER: a checkout of NVlabs/edm2 that is timed as well; GPUS: processes of the largest run.
set -uo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-.venv/bin/python}
out=results/bench/cuda
peer=(${PEER:+--peer "$PEER"})
fp16=(--device cuda --precision fp16)
s=("${fp16[@]}" --size s --steps 32)

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' >&2 || {
    echo "$python finds no GPU on this machine; nothing was run." >&2
    exit 2
}

bench() {
    "$python" -m "scripts.bench.$1" "${@:2}"
}

tests() { "$python" -m pytest -q -m gpu; }
doctor() { "$python" -m erk doctor; }
network() { # S: at least half of the rate of matrix products
    bench network "${fp16[@]}" --batch 64 --rounds 5 --out $out ${peer[@]+"${peer[@]}"} \
        --size xs --size s --size m --size l --size xl --size xxl
}
compiled() { bench network "${fp16[@]}" --batch 64 --size s --compile --out $out/compile; }
sampling() { # at least 2.5 times the peer
    bench sampling "${s[@]}" --latent --batch 64 --out $out ${peer[@]+"${peer[@]}"}
}
half_vae() { bench sampling "${s[@]}" --latent --batch 64 --with=--vae-precision=fp16 --out $out/half_vae; }
xxl() { # at least 1.5 times the peer
    bench sampling "${fp16[@]}" --size xxl --steps 32 --latent --batch 64 --rounds 2 --out $out/xxl \
        ${peer[@]+"${peer[@]}"}
}
decoding() { bench decoding --device cuda --batch 8 --rounds 5 --out $out; }
guidance() { bench guidance "${s[@]}" --batch 64 --out $out; } # at most 0.3 % and one state pair
scaling() {
    bench scaling "${s[@]}" --latent --batch 64 --batch 16 --batch 128 --further 3 --out $out \
        --ranks 1 --ranks "${GPUS:-1}"
}
precision() { bench precision --images 256 --out $out; }
evaluator() { bench evaluator --device cuda --images 256 --sets 2000 --out $out; }
neighbours() { # ours: at most 30 s
    bench precision_recall --device cuda --n 50000 --dim 4096 --rounds 1 --out $out
}
evaluation() { # 50 000 images in at most 10 minutes are 84 a second
    bench evaluation --device cuda --images 10000 --rounds 1 --threads 16 --out $out
}

steps=("$@")
[ "$#" -gt 0 ] || steps=(tests doctor network sampling half_vae decoding guidance neighbours evaluation evaluator
    compiled scaling xxl precision)
failed=()
for step in "${steps[@]}"; do
    echo "== $step"
    declare -F "$step" >/dev/null && "$step" || failed+=("$step")
done
[ "${#failed[@]}" -eq 0 ] || { printf 'FAILED: %s\n' "${failed[@]}"; exit 1; }
