#!/usr/bin/env bash
# Run the peers' own tests on our integrations, from checkouts in DIR; nothing of them is here.
#
#   bash tests/peers/run.sh DIR [PYTHON]
#
# DIR/diffusers (github.com/huggingface/diffusers): its scheduler tests with the parents and with
# our schedulers at w_stiff 0 and 0.5 (see swap_schedulers.py for what is left out), and its
# PipelineTesterMixin on EDM2Pipeline. DIR/k-diffusion (github.com/crowsonkb/k-diffusion): our
# samplers against sample_heun and sample_dpm_2. DIR/ComfyUI (github.com/Comfy-Org/ComfyUI): our
# nodes in it, on a small network with random weights. What DIR lacks is left out. PYTHON needs the
# packages of requirements-dev.txt and accelerate, parameterized, requests-mock and scipy; for
# ComfyUI those of its own requirements.txt, pytest and this checkout. The exit status is 1 if ours
# fail more tests than the parents.
set -u
here=$(cd "$(dirname "$0")" && pwd)
peers=$(cd "${1:?usage: run.sh DIR [PYTHON]}" && pwd)
python=${2:-$here/../../.venv/bin/python}
given=${PYTHONPATH:-}
worse=0

count() {  # a title, then arguments of pytest: print the counts; lost is the number of failures
    local title=$1 line
    shift
    line=$("$python" -m pytest -q -p no:cacheprovider -W ignore -o addopts= "$@" 2>/dev/null \
        | tee "${PEERS_LOG:-/dev/null}" | grep -E "(passed|failed|error).* in " | tail -n 1)
    printf '%-40s %s\n' "$title" "${line:-did not run}"
    lost=$(sed -nE 's/^([0-9]+) (failed|error).*/\1/p' <<< "$line")
    [ -n "$line" ] && lost=${lost:-0} || lost=999
}

if [ -d "$peers/diffusers/tests/schedulers" ]; then
    export PYTHONPATH="$peers/diffusers:$here:$given"
    for name in heun dpm_single dpm_multi; do
        file="$peers/diffusers/tests/schedulers/test_scheduler_$name.py"
        for kind in parent 0 0.5; do
            PEERS_KIND=$kind count "$name, $kind" --rootdir "$peers/diffusers" \
                -p swap_schedulers "$file"
            [ $kind = parent ] && parent=$lost
            [ "$lost" -le "$parent" ] || worse=1
        done
    done
    count "EDM2Pipeline, PipelineTesterMixin" --rootdir "$peers/diffusers" "$here/pipeline_suite.py"
    [ "$lost" -eq 0 ] || worse=1
fi
if [ -d "$peers/k-diffusion/k_diffusion" ]; then
    PYTHONPATH="$here:$given" PEERS_KDIFFUSION="$peers/k-diffusion" \
        count "k-diffusion's siblings" --rootdir "$here" "$here/kdiffusion_suite.py"
    [ "$lost" -eq 0 ] || worse=1
fi
if [ -d "$peers/ComfyUI/comfy" ]; then
    PYTHONPATH="$peers/ComfyUI:$here/..:$given" count "our nodes in ComfyUI" --rootdir "$here" "$here/comfyui_suite.py"
    [ "$lost" -eq 0 ] || worse=1
fi
exit $worse
