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
mkdir -p docs/images
"$erk" generate --preset mnist --seeds 0-63 --labels balanced --steps 6 --erk auto --grid --outdir $out/mnist
"$erk" "${digits[@]}" --outdir $out/off --trace $out/off.npz
"$erk" "${digits[@]}" --outdir $out/on --w-stiff 0.5 --w-con 0.3 --trace $out/on.npz --animate $out/film.webp
"$erk" trace $out/on.npz $out/off.npz --w-con 0.3 --out docs/images/trace.png
"$erk" compare $out/off $out/on --num 8 --out docs/images/differences.png
cp $out/mnist/grid.png docs/images/grid.png
cp $out/film.webp docs/images/film.webp
