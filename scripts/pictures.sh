#!/usr/bin/env bash
# Makes the images of docs/images/ with the commands that the pages show.
#   bash scripts/pictures.sh
set -euo pipefail
case ${1-} in   # the lines above
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"; exit ;;
esac
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
out=out/pictures
erk=.venv/bin/erk
digits=(generate --preset digits --seeds 0-63 --labels balanced --steps 8)
guided=(--seeds 0-31 --labels balanced --steps 16 --erk auto)
mkdir -p docs/images
"$erk" generate --preset mnist --seeds 0-63 --labels balanced --steps 6 --erk auto --grid --outdir $out/mnist
"$erk" "${digits[@]}" --outdir $out/off --trace $out/off.npz
"$erk" "${digits[@]}" --outdir $out/on --w-stiff 0.5 --w-con 0.3 --trace $out/on.npz --animate $out/film.webp
"$erk" trace $out/on.npz $out/off.npz --w-con 0.3 --out docs/images/trace.png
"$erk" compare $out/off $out/on --num 8 --out docs/images/differences.png
"$erk" generate --preset mnist "${guided[@]}" --outdir $out/alone
"$erk" generate --preset mnist-cfg --guidance 2 "${guided[@]}" --outdir $out/guided
"$erk" compare $out/alone $out/guided --num 8 --out docs/images/guidance.png
.venv/bin/python - << 'EOF'
import torch
from diffusers.utils import make_image_grid
from erk.integrations.diffusers import EDM2Pipeline

rows = []
for settings in ({}, {"erk": "auto"}):
    pipe = EDM2Pipeline.from_checkpoint("mnist", **settings)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(8)]
    rows += pipe(class_labels=[*range(8)], num_inference_steps=5, generator=seeds).images
make_image_grid(rows, 2, 8, resize=84).save("docs/images/pipeline.png")
EOF
cp $out/mnist/grid.png docs/images/grid.png
cp $out/film.webp docs/images/film.webp
