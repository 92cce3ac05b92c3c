"""The command `generate`: seeds to images, or with --evaluate straight to their metrics."""

import os
from typing import Any

import click
import cloup

from erk.commands import options as shared
from erk.commands.cli import command, require_different, require_suffix


def _list_presets(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from erk.commands.presets import main as presets

        context.invoke(presets)
        context.exit()


def _with_seeds(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with seeds: all 50 000 of a released network, 64 of an embedded one."""
    if options["seeds"] is not None:
        return options
    from erk.models.presets import is_embedded

    few = options["net"] is None and options["preset"] and is_embedded(options["preset"])
    if os.environ.get("RANK", "0") == "0":
        text = "64 images, seeds 0-63" if few else "50000 images, seeds 0-49999"
        click.echo(f"{text}; --seeds chooses others. The bar shows the time left.", err=True)
    if not few:
        return options | {"seeds": "0-49999"}
    return options | {"seeds": "0-63", "grid": options["grid"] or options["evaluate"] is None}


@command(
    "erk generate --preset digits --seeds 0-63 --steps 8 --w-stiff 0.5 --w-con 0.3 --grid",
    "torchrun --nproc-per-node 8 -m erk generate --preset edm2-img512-s --w-stiff 1.0",
)
@shared.network_options(
    *map(shared.setting, ("guidance_kind", "apg_eta", "apg_threshold", "apg_momentum")),
    cloup.option("--list-presets", is_flag=True, is_eager=True, expose_value=False,
                 callback=_list_presets, help="Print the presets, as erk presets does."),
    cloup.option("--vae", metavar="DIR|NAME", help="Another VAE for latent models."),
)  # fmt: skip
@shared.label_options(
    cloup.option("--seeds", metavar="LIST", help="One image per seed, such as 0-9,12.  "
                 "[default: 0-49999; for the presets in this package 0-63, with --grid]"),
)  # fmt: skip
@shared.sampling_options(
    32, *map(shared.setting, ("S_churn", "S_min", "S_max", "S_noise", "churn_rule"))
)
@cloup.option_group(
    "ERK-Guid",
    *map(shared.setting, ("w_stiff", "w_con", "erk_scale", "erk")),
    cloup.option("--card", metavar="FILE", help="A card of erk calibrate: it sets solver, noise "
                 "levels and corrections (docs/howto/without-knobs.md)."),
)  # fmt: skip
@cloup.option_group(
    "Baselines of the paper",
    *map(shared.setting, ("erk_proj", "adaptive_tau", "pc_snr", "pc_stochastic")),
)
@cloup.option_group(
    "Output",
    cloup.option("--outdir", metavar="DIR", default="out", help="Folder of the images."),
    cloup.option("--format", "kind", type=click.Choice(["png", "zip", "npz"]), default="png",
                 help="One PNG per seed, or all in images.zip or images.npz."),
    cloup.option("--subdirs", is_flag=True, help="1000 images per subfolder."),
    cloup.option("--grid", is_flag=True, help="Also write grid.png: the first 100 images with "
                 "their seeds and, unless drawn at random, their classes."),
    cloup.option("--animate", metavar="FILE.gif", help="Also animate x and D of the first 8 seeds "
                 "along sigma, as .gif or .webp."),
    cloup.option("--trace", metavar="FILE.npz", help="Write stiffness and corrections per step."),
    cloup.option("--verify", is_flag=True, help="Compare the sha256 of the existing images with "
                 "the manifest, and sample again what differs."),
    cloup.option("--shard", metavar="I/N", help="Sample only every N-th image, starting at "
                 "I (from 0); shards do not communicate.  "
                 "[default: the task of srun or a SLURM array]"),
)  # fmt: skip
@cloup.option_group(
    "Evaluation",
    cloup.option("--evaluate", metavar="NAME|FILE", help="Measure the images against this "
                 "reference as they are sampled, and write none (see erk evaluate)."),
    cloup.option("--real", metavar="PATH", help="With --evaluate: real images, for precision and "
                 "recall."),
    cloup.option("--protocol", metavar="NAME", help="With --evaluate: definitions of the metrics."),
    cloup.option("--json", "json_path", metavar="FILE", help="With --evaluate: write the result "
                 "row to this file.  [default: results/PRESET-REF-SETTINGS.json]"),
)  # fmt: skip
@shared.device_options(
    cloup.option("--vae-precision", type=shared.PRECISIONS, default="auto", help="Precision of the "
                 "VAE; auto: as published, fp32 with TF32 in CUDA's convolutions."),
    shared.batch_option(32, "Images per network call."),
    cloup.option("--vae-batch", type=shared.BATCH, help="Latents per call of the VAE.  "
                 "[default: from the network's file, else 8]"),
    cloup.option("--compile", type=click.Choice(["auto", "always", "never"]), default="auto",
                 help="Compile the networks first, which takes a minute or two; auto: on CUDA, for "
                 "runs that save more time than that."),
    cloup.option("--profile", is_flag=True,
                 help="Print the time of each stage (docs/performance.md)."),
)  # fmt: skip
def main(**options: Any) -> None:
    """Sample images from a diffusion model, with or without ERK-Guid.

    An image depends only on its seed and the settings. Running the same command again samples
    the missing images. For several GPUs or CPU cores use torchrun, as in the second example.

    Every option may also be spelt with underscores, --w_stiff.
    """
    options["given"] = shared.check_needs(click.get_current_context())
    if (trace := options["trace"]) is not None:
        require_suffix("--trace", trace, ".npz")
        archive = os.path.join(options["outdir"], "images.npz")
        require_different("--trace", trace, "the archive of the run", archive)
    options = _with_seeds(options)
    reference, animation = options.pop("evaluate"), options.pop("animate")
    measuring = {name: options.pop(name) for name in ("real", "protocol", "json_path")}
    if reference is not None:
        from erk.commands.measured_sampling import generate_and_evaluate

        if animation is not None:
            raise ValueError("--animate and --evaluate exclude each other; give one of them")
        generate_and_evaluate(reference, options, **measuring)
        return
    given = next((name for name, value in measuring.items() if value is not None), None)
    if given is not None:
        raise ValueError(f"--{given.removesuffix('_path')} needs --evaluate: add it")
    from erk.generation.film import check_film, write_film
    from erk.generation.run import run

    if animation is not None:
        check_film(animation)
    run(**options)
    if animation is not None:
        write_film(animation, options)


if __name__ == "__main__":
    main()
