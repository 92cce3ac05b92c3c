"""Sample a diffusion model with ERK-Guid: seeds in, pictures out.

python generate.py --preset digits --seeds 0-63 --steps 8 --w-stiff 0.5 --w-con 0.3 --grid
torchrun --nproc-per-node 8 generate.py --preset edm2-img512-s --w-stiff 1.0
"""

from pathlib import Path
from typing import Any

import click

from erk import __version__
from erk.commands.cli import CONTEXT, clean_exit


def _list_presets(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from erk.models.presets import describe

        click.echo("\n".join(describe()))
        context.exit()


@click.command(context_settings=CONTEXT)
@click.option("--preset", metavar="NAME", help="Network, guide and guidance by name.")
@click.option("--net", metavar="FILE", help="Network: a path, https:// or hf://owner/repo[/file]; "
              "takes the place of the preset's.")  # fmt: skip
@click.option("--gnet", metavar="FILE", help="Guiding network: for CFG an unconditional one, "
              "for Autoguidance a weaker one.")  # fmt: skip
@click.option("--list-presets", is_flag=True, is_eager=True, expose_value=False,
              callback=_list_presets, help="Print all presets and exit.")  # fmt: skip
@click.option("--outdir", metavar="DIR", default="out", help="Where the pictures go.")
@click.option("--seeds", metavar="LIST", default="0-49999", help="One picture per seed: 0-9,12.")
@click.option("--class", "class_idx", type=int, metavar="N", help="One class for all pictures.")
@click.option("--labels", metavar="random|balanced|FILE", default="random",
              help="Class of each picture: drawn from its seed; seed mod classes; or lines of "
              "'SEED CLASS'.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=32, help="Pictures at a time.")
@click.option("--steps", type=int, default=32, help="Intervals of the schedule.")
@click.option("--sigma-min", type=float, default=0.002, help="Lowest noise level above 0.")
@click.option("--sigma-max", type=float, default=80.0, help="Highest noise level.")
@click.option("--rho", type=float, help="Exponent of the schedule.  [default: the schedule's own]")
@click.option("--solver", default="heun", metavar="NAME", help="euler, heun, dpm2, ipndm, "
              "ipndm_v, deis, dpmpp or unipc (docs/solvers.md).")  # fmt: skip
@click.option("--solver-option", multiple=True, metavar="NAME=VALUE",
              help="An option of the solver, such as order=3; may be repeated.")  # fmt: skip
@click.option("--schedule", default="edm", metavar="NAME|LIST", help="edm, polynomial, logsnr, "
              "time_uniform, discrete, or noise levels 80,20,5,0.")  # fmt: skip
@click.option("--afs", is_flag=True, help="Analytic first step: one evaluation less.")
@click.option("--denoise-to-zero", is_flag=True, help="A last Euler step to sigma = 0.")
@click.option("--guidance", type=float, help="Weight of model guidance; 1 is off.  "
              "[default: the preset's, else 1]")  # fmt: skip
@click.option("--guidance-interval", metavar="LO,HI",
              help="Apply model guidance only for LO < sigma <= HI.")  # fmt: skip
@click.option("--w-stiff", type=float, default=0.0, help="Strength of ERK-Guid; 0 is off.")
@click.option("--w-con", type=float, default=0.5, help="Stiffness above which ERK-Guid acts.")
@click.option("--erk", metavar="auto|FILE", help="ERK-Guid without weights: 'auto' weighs the "
              "solver's own embedded difference; FILE is a card of erk calibrate "
              "(docs/beyond.md).")  # fmt: skip
@click.option("--erk-scale", type=click.Choice(["quadratic", "abs", "alpha"]),
              default="quadratic", help="How the correction grows with z (Fig. 6b).")  # fmt: skip
@click.option("--erk-proj", is_flag=True, help="ERK-Proj in place of ERK-Guid (Eq. 59-61).")
@click.option("--adaptive-tau", type=float, metavar="TAU",
              help="Halve Heun's steps where stiffness exceeds TAU (Table 10).")  # fmt: skip
@click.option("--pc-snr", type=float, default=0.0,
              help="Langevin corrector's signal-to-noise ratio; 0 is off (Table 11).")  # fmt: skip
@click.option("--pc-deterministic", is_flag=True, help="The corrector without its noise.")
@click.option("--S-churn", "S_churn", type=float, default=0.0, help="EDM's stochasticity.")
@click.option("--S-min", "S_min", type=float, default=0.0, help="Lowest sigma that is churned.")
@click.option("--S-max", "S_max", type=float, default=float("inf"), help="Highest such sigma.")
@click.option("--S-noise", "S_noise", type=float, default=1.0, help="Scale of churned noise.")
@click.option("--noise", type=click.Choice(["device", "cpu"]), default="device",
              help="Where noise is drawn: 'device' as published; 'cpu' starts a seed equally "
              "on every device.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
              help="Where to compute; auto: CUDA, then MPS, then the CPU.")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "fp32", "tf32", "fp16", "bf16"]),
              default="auto", help="What networks compute in; auto: fp16 on CUDA where released "
              "so, else fp32.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Compile the networks first: minutes, "
              "for runs that take hours.")  # fmt: skip
@click.option("--vae", metavar="DIR|NAME", help="Another VAE for latent models.")
@click.option("--vae-precision", type=click.Choice(["auto", "fp32", "tf32", "fp16", "bf16"]),
              default="auto", help="What the VAE computes in; auto: as published, fp32 with TF32 "
              "in CUDA's convolutions.")  # fmt: skip
@click.option("--vae-batch", type=click.IntRange(min=1), help="Latents that the VAE decodes at a "
              "time.  [default: the network's file says it, else 8]")  # fmt: skip
@click.option("--format", "kind", type=click.Choice(["png", "zip", "npz"]), default="png",
              help="One PNG per seed, or all in images.zip or images.npz.")  # fmt: skip
@click.option("--subdirs", is_flag=True, help="1000 pictures per sub-folder.")
@click.option("--grid", is_flag=True, help="Also write grid.png, a sheet of the first 100.")
@click.option("--animate", metavar="FILE.gif", help="Also film x and D of the first 8 seeds along "
              "sigma, .gif or .webp.")  # fmt: skip
@click.option("--trace", metavar="FILE.npz", help="Write stiffness and corrections per step.")
@click.option("--evaluate", metavar="NAME|FILE", help="Measure the pictures against this "
              "reference as they are made, and write none (see evaluate.py).")  # fmt: skip
@click.option("--real", metavar="PATH", help="With --evaluate: real images, for precision and "
              "recall.")  # fmt: skip
@click.option("--protocol", metavar="NAME", help="With --evaluate: whose definitions.")
@click.option("--json", "json_path", metavar="FILE", help="With --evaluate: where the row goes.  "
              "[default: results/PRESET-REF-SETTINGS.json]")  # fmt: skip
@click.option("--shard", metavar="I/N", help="Make every N-th picture only, from I = 0 on, "
              "without communication.  [default: the task of srun or a SLURM array]")  # fmt: skip
@click.option("--profile", is_flag=True, help="Print where the time went.")
@click.option("--offline", is_flag=True, help="Never download; use what is in the cache.")
@click.version_option(__version__)
@clean_exit
def main(**options: Any) -> None:
    """Sample a diffusion model, with ERK-Guid if --w-stiff is above 0.

    A picture depends on its seed and the settings alone. Running the same command again makes
    what is missing. Several GPUs or CPU cores: torchrun --nproc-per-node N generate.py ...

    Every option may also be spelt with underscores, --w_stiff.
    """
    ref, animate = options.pop("evaluate"), options.pop("animate")
    measuring = {name: options.pop(name) for name in ("real", "protocol", "json_path")}
    if ref is not None:
        if animate is not None:
            raise ValueError("--animate and --evaluate exclude each other; give one of them")
        _measure(ref, options, measuring)
        return
    given = [name for name, value in measuring.items() if value is not None]
    if given:
        raise ValueError(f"--{given[0].removesuffix('_path')} says how to measure: add --evaluate")
    from erk.generation.film import check_film, write_film
    from erk.generation.run import run

    if animate is not None:
        check_film(animate)
    run(**options)
    if animate is not None:
        write_film(animate, options)


def _measure(ref: str, options: dict[str, Any], measuring: dict[str, str | None]) -> None:
    """From the sampler to the numbers; features are kept, so a killed run goes on."""
    from erk.generation.job import plain
    from erk.generation.options import open_job
    from erk.generation.record import check_writable
    from erk.generation.stream import image_chunks, summarize
    from erk.runtime.distributed import join, pick_device
    from erk.runtime.shards import shard_of
    from metrics.judge import extract_share, load_judge, measure_chunks
    from metrics.report import text, to_row
    from metrics.table import to_json, write

    unused = next((n for n in ("trace", "grid", "subdirs", "profile") if options[n]), None)
    if unused is not None:
        raise ValueError(
            f"--{unused} needs pictures on the disk: leave out --{unused} or --evaluate"
        )
    check_writable(Path(measuring["json_path"] or "results/row").parent)
    device, shard = pick_device(options["device"]), shard_of(options["shard"])
    how = {name: measuring[name] for name in ("real", "protocol")}
    by = load_judge(ref, device=device, offline=options["offline"], **how)
    job = open_job(options)
    with join(device) as world:
        if shard is not None:
            extract_share(by, world, image_chunks(job), len(job.seeds), shard)
            where = f"its features are in {by.how.folder}; run this with --shard 0/1 when all are"
            click.echo(f"shard {shard[0]} of {shard[1]}: {where} done")
            return
        verdict = measure_chunks(by, world, image_chunks(job), len(job.seeds))
    if verdict is None:
        return
    key = job.key()
    name = options["preset"] or Path(options["net"]).stem
    run = {"settings": plain(job.identity), "settings_key": key} | job.metadata
    row = {"images": f"{name}, not stored", "seeds": job.metadata["seeds"]} | to_row(by, verdict)
    row |= summarize(verdict.found.facts, job.batch) | {"run": run}
    place = measuring["json_path"] or Path("results") / f"{name}-{Path(ref).stem}-{key[:8]}.json"
    click.echo(text(by, row, verdict.result))
    click.echo(f"row written to {write(place, to_json(row))}")


if __name__ == "__main__":
    main()
