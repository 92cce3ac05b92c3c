"""EDM2 and EDM networks in diffusers: a model and a pipeline for the released files.

pipe = EDM2Pipeline.from_checkpoint("edm2-img512-s", w_stiff=1.0).to("cuda")
pipe(class_labels=[207, 360]).images[0].save("golden-retriever.png")
"""

import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from erk.calibration.card import Card, open_card
from erk.integrations.schedulers import ERKHeunScheduler
from erk.io.download import is_offline
from erk.method.drift import GuidedDrift, NonFiniteError
from erk.method.fields import field
from erk.method.sampler import sums_of
from erk.method.settings import Settings
from erk.method.values import checked, number, shown
from erk.models.checkpoint import (
    DTYPES,
    ENCODERS,
    NETWORKS,
    build,
    check_parts,
    limit_parameters,
    read,
)
from erk.models.edm2 import Precond
from erk.models.encoders import VAEEncoder
from erk.models.model import PRECISIONS, Model, address_of, fetch_checkpoint
from erk.models.presets import find_preset
from erk.models.shapes import Part

MOST_TENSORS = 5000  # of a network; the largest released one has 600
OUTPUTS = ("pil", "np", "pt", "latent")


class EDM2Network(ModelMixin, ConfigMixin):
    """A network and its encoder as a diffusers model: the denoiser D(x; sigma), for inference.

    Parameters
    ----------
    architecture, encoder
        {"class": ..., "kwargs": ...} as in the metadata of a checkpoint.
    stored_as
        Dtype of the parameters; EDM2's gains are divided in it.
    precision
        Precision of the network's computations, as in `erk.load_model`.
    licence, sha256
        Licence of the weights and hash of their file, which cards name.
    """

    @register_to_config
    def __init__(
        self,
        architecture: dict[str, Any],
        encoder: dict[str, Any],
        stored_as: str = "float32",
        precision: str = "auto",
        licence: str = "unknown",
        sha256: str = "",
    ):
        super().__init__()
        source = "the config of EDM2Network"
        net, decoder = _part(architecture, source), _part(encoder, source)
        check_parts(net, decoder, source)
        stored = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
        for name, value, allowed in (("stored_as", stored_as, stored),
                                     ("precision", precision, PRECISIONS)):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not '{value}'.")
        with limit_parameters(MOST_TENSORS):
            self.network = NETWORKS[net.name](**net.kwargs)
        self.network.compute_dtype = PRECISIONS[precision]  # type: ignore[assignment]
        self.encoder = ENCODERS[decoder.name](**decoder.kwargs)
        self._set_offline(False)
        self.network.to(stored[stored_as])
        self.eval().requires_grad_(False)
        self._is_folded = False

    @classmethod
    def from_checkpoint(
        cls, source: str | Path, precision: str = "auto", offline: bool = False
    ) -> "EDM2Network":
        """Load a preset, or the path or URL of a released file, as `erk.load_model`."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision}.")
        path = fetch_checkpoint(address_of(source), offline)
        checkpoint = read(path)
        network, encoder = build(checkpoint, str(path))
        parts: dict[str, Any] = {
            name: {"class": part.name, "kwargs": part.kwargs}
            for name, part in (("architecture", checkpoint.architecture),
                               ("encoder", checkpoint.encoder))
        }  # fmt: skip
        parts["stored_as"] = str(next(network.parameters()).dtype).removeprefix("torch.")
        licence = checkpoint.metadata.get("licence", "unknown")
        with torch.device("meta"):  # the weights are in memory already
            model = cls(**parts, precision=precision, licence=licence, sha256=checkpoint.sha256)
        network.compute_dtype = PRECISIONS[precision]  # type: ignore[assignment]
        model.network, model.encoder = network, encoder
        model._set_offline(offline)
        return model

    def _set_offline(self, offline: bool) -> None:
        """Let the decoder's weights be downloaded only if the arguments and ERK_OFFLINE do."""
        if isinstance(self.encoder, VAEEncoder):
            self.encoder.offline = is_offline(offline)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a saved network as the parent class does; `torch_dtype` is for its parameters.

        With `local_files_only` the decoder is not downloaded either. Raises ValueError for a config
        of unknown classes or with arguments out of range.
        """
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        offline = bool(kwargs.get("local_files_only"))
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._set_offline(offline)
        if isinstance(dtype, torch.dtype):  # the config's dtype is that of the saved file
            model.to(dtype)
        return loaded

    @property
    def denoiser(self) -> Model:
        """The network as an `erk.Model`, for `erk.sample`."""
        if isinstance(self.network, Precond) and not self._is_folded:
            self.network.fold()
            self._is_folded = True
        model = Model(self.network, self.encoder, self.device)
        model.sha256 = self.config.sha256
        return model

    def forward(self, sample: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoise a sample: D(sample; sigma), as `erk.Model`."""
        return self.denoiser(sample, sigma, class_labels)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Round to the nearest noise levels of training, as `erk.Model`."""
        return self.denoiser.round_sigma(sigma)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._is_folded = False  # .to() does not move the folded weights
        module = super()._apply(*args, **kwargs)
        self.register_to_config(stored_as=str(self.dtype).removeprefix("torch."))
        return module


class EDM2Pipeline(DiffusionPipeline):
    """Class-conditional images from EDM2 or EDM networks with CFG, Autoguidance and ERK-Guid.

    Parameters
    ----------
    network
        The denoiser.
    scheduler
        `ERKHeunScheduler(prediction_type="sample")`, or any with sample prediction and sigmas.
    guide
        Guiding network: an unconditional one for CFG, a weaker one for Autoguidance.
    guidance_scale
        Weight w in D_guide + w (D - D_guide).
    """

    _optional_components = ["guide"]
    model_cpu_offload_seq = "guide->network"

    def __init__(
        self,
        network: EDM2Network,
        scheduler: Any,
        guide: EDM2Network | None = None,
        guidance_scale: float = 1.0,
    ):
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler, guide=guide)
        self.register_to_config(guidance_scale=guidance_scale)

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path,
        guide: str | Path | None = None,
        guidance_scale: float | None = None,
        w_stiff: float = 0.0,
        w_con: float = 0.5,
        precision: str = "auto",
        offline: bool = False,
        erk: str | None = None,
        card: Any = None,
    ) -> "EDM2Pipeline":
        """Load a preset with its guide and guidance weight, or a network from a path or URL.

        `w_stiff` and `w_con`, `erk="auto"` or a `card` are for ERKHeunScheduler. Raises ValueError
        for a card of another solver, other networks or another guidance.
        """
        net, scale = source, 1.0
        with suppress(ValueError):  # a path or URL is not a preset
            preset = find_preset(str(source))
            net, guide, scale = preset.net, guide or preset.gnet, preset.guidance
        scale = scale if guidance_scale is None else guidance_scale
        network = EDM2Network.from_checkpoint(net, precision, offline)
        second = None if guide is None else EDM2Network.from_checkpoint(guide, precision, offline)
        scheduler = ERKHeunScheduler(
            prediction_type="sample", w_stiff=w_stiff, w_con=w_con, erk=erk, card=card,
            guidance=scale,
        )  # fmt: skip
        pipe = cls(network, scheduler, second, scale)
        pipe._check_card(scale)
        return pipe

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        batch_size: int | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        rho: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate images.

        Parameters
        ----------
        class_labels
            Classes [B], or one class for all `batch_size` images; None: without classes.
        num_inference_steps
            Intervals; default: 32, or those of the scheduler's card.
        generator
            Source of noise; a list has one per image.
        latents
            Unit noise [B, C, H, W] in place of the generator's.
        batch_size
            Number of images; default: that of the classes, else of `latents`, else 1.
        sigma_min, sigma_max, rho
            EDM's schedule; default: 0.002, 80 and 7, or that of the scheduler's card.
        output_type
            "pil", "np" [B, H, W, C] or "pt" [B, C, H, W] in 0..1, or "latent".

        Raises
        ------
        ValueError, NonFiniteError
            For arguments that do not fit together; if a network produces NaN or infinity.
        """
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        scale = checked(field("guidance"), scale)
        self._check(output_type, scale)
        model, device = self.network.denoiser, self._execution_device
        self._set_levels(
            {"steps": num_inference_steps, "sigma_min": sigma_min, "sigma_max": sigma_max,
             "rho": rho}, scale, device,
        )  # fmt: skip
        labels, size = _labels(class_labels, model.label_dim, batch_size, latents)
        shape = (size, *model.sample_shape)
        generator = list(generator) if isinstance(generator, tuple) else generator
        _check_noise(shape, generator, latents)
        labels = None if labels is None else labels.to(device)
        noise = randn_tensor(shape, generator, device) if latents is None else latents.to(device)
        guide = None if scale == 1 else self.guide
        drift = GuidedDrift(self.network, labels, guide, scale)  # modules, whose hooks offload them
        x0 = self._sample(drift, noise)
        self.maybe_free_model_hooks()
        images = x0 if output_type == "latent" else _converted(model.decode(x0), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_card(self, scale: float) -> Card | None:
        """Return the scheduler's card, if any; ValueError unless it is for these networks."""
        if self.scheduler.config.get("card") is None:
            return None
        guide = None if scale == 1 or self.guide is None else self.guide.denoiser
        self.scheduler.check_card(self.network.denoiser, guide, scale)
        return open_card(self.scheduler.config.card)

    def _set_levels(self, given: dict[str, Any], scale: float, device: Any) -> None:
        """Set the scheduler's noise levels: EDM's, or those of its card."""
        card = self._check_card(scale)
        if card is None:
            known = {name: value for name, value in given.items() if value is not None}
            sigmas = Settings(**known).sigmas(self.network.denoiser)
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            card.check_given(given)
            self.scheduler.set_timesteps(device=device)

    def _sample(self, drift: GuidedDrift, noise: Tensor) -> Tensor:
        self.scheduler.set_begin_index(0)  # levels beyond the scheduler's table share a timestep
        x, sums = noise.to(torch.float32) * self.scheduler.sigmas[0], []
        for index, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            denoised, guide = drift.denoise(x, self.scheduler.sigmas[index])
            if guide is not None:
                denoised = guide.lerp(denoised, drift.guidance)
            x = self.scheduler.step(denoised, t, x, return_dict=False)[0]
            sums.append(sums_of(x))
        bad = (~torch.stack(sums).isfinite()).nonzero()  # read once: a GPU never waits
        if len(bad):
            index, sample = bad[0].tolist()
            level = self.scheduler.sigmas[index].item()
            raise NonFiniteError(sample, index // self.scheduler.order, level, drift.in_half)
        return x

    def _check(self, output_type: str, scale: float) -> None:
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be {' or '.join(OUTPUTS)}, not '{output_type}'.")
        if scale != 1 and self.guide is None:
            raise ValueError(f"guidance_scale {scale:g} needs a guide: load the pipeline with one.")
        takes_sigmas = "sigmas" in inspect.signature(self.scheduler.set_timesteps).parameters
        if not takes_sigmas or self.scheduler.config.get("prediction_type") != "sample":
            raise ValueError(
                "this pipeline needs a scheduler whose set_timesteps takes sigmas, with "
                "prediction_type='sample', such as ERKHeunScheduler(prediction_type='sample')."
            )


def _labels(
    classes: Any, label_dim: int, batch_size: int | None, latents: Tensor | None
) -> tuple[Tensor | None, int]:
    """Return the classes [B] or None, and B; ValueError unless they fit together."""
    if latents is not None and not (isinstance(latents, Tensor) and latents.ndim and len(latents)):
        raise ValueError(f"latents must be a tensor [B, C, H, W], not {shown(latents)}.")
    if batch_size is not None:
        batch_size = number("batch_size", batch_size, int, least=1)
    size = batch_size or (1 if latents is None else len(latents))
    if classes is None:
        return None, size
    try:
        labels = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError):  # torch raises all of them
        labels = torch.empty(0)
    if (
        labels.dtype == torch.bool
        or labels.ndim > 1
        or labels.is_floating_point()
        or labels.is_complex()
        or not labels.numel()
    ):
        raise ValueError(
            f"class_labels must be an integer or a list of integers, not {shown(classes)}."
        )
    labels = labels.long()
    if label_dim and not 0 <= labels.min() <= labels.max() < label_dim:
        raise ValueError(f"class_labels are 0 to {label_dim - 1}, not {labels.tolist()}.")
    if labels.ndim == 0:
        return labels.expand(size), size
    if batch_size not in (None, len(labels)):
        raise ValueError(
            f"{len(labels)} class_labels do not fit batch_size={batch_size}: leave one of them out."
        )
    return labels, len(labels)


def _check_noise(shape: tuple[int, ...], generator: Any, latents: Tensor | None) -> None:
    """Raise ValueError unless there is one generator per image and latents have this shape."""
    many = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in many):
        raise ValueError(f"generator must be a torch.Generator or a list, not {shown(generator)}.")
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(
            f"{len(generator)} generators do not fit {shape[0]} images: give one per image, or one "
            "for all."
        )
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents must be {list(shape)}, not {list(latents.shape)}.")
    if latents is not None and not (latents.is_floating_point() and latents.isfinite().all()):
        raise ValueError(
            f"latents must be finite floating-point numbers of unit variance, not {latents.dtype} "
            "with these values: draw them with torch.randn."
        )


def _part(value: Any, source: str) -> Part:
    """Return a part of a config; ValueError unless it names a class and its arguments."""
    if not (isinstance(value, dict) and isinstance(value.get("kwargs"), dict)):
        raise ValueError(f"{source} must have {{'class': ..., 'kwargs': {{...}}}}, not {value!r}.")
    return Part(str(value.get("class")), value["kwargs"])


def _converted(images: Tensor, output_type: str) -> Any:
    """Convert images uint8 [B, C, H, W] to diffusers' output type."""
    if output_type == "pt":
        return images.to(torch.float32) / 255
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return arrays.astype("float32") / 255
    return [Image.fromarray(one.squeeze(2) if one.shape[2] == 1 else one) for one in arrays]
