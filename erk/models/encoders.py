"""Encoders: from a network's data space to uint8 pixels."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from erk.io.download import cache_dir
from erk.runtime.precision import RELEASED, tf32_only


class DecodeError(FloatingPointError):
    """A decoder gave NaN or infinity; `sample` is the place in the batch."""

    def __init__(self, decoder: str, sample: int, name: str = ""):
        self.decoder, self.sample = decoder, sample
        super().__init__(
            f"{decoder} gave NaN or infinity for {name or f'sample {sample} of the batch'}; check "
            "its weights, and that the network makes latents for it"
        )

    def named(self, name: str) -> "DecodeError":
        """The same of a sample that has a name."""
        return DecodeError(self.decoder, self.sample, name)


class Encoder(Protocol):
    """What a model needs to turn samples into pictures."""

    def decode(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] float, data of standard deviation 0.5 -> uint8 [B, C', H', W']."""
        ...


class PixelEncoder:
    """Pixels as they are: -1..1 stands for 0..255 (EDM, EDM2 at 64x64)."""

    def decode(self, x: Tensor) -> Tensor:
        """[B, C, H, W] float -> uint8 [B, C, H, W], truncating as the published code does."""
        return (x.to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)


class DigitsEncoder:
    """Scikit-learn's digits (0..16), standardised by two scalars to mean 0, deviation 0.5."""

    def __init__(self, mean: float, std: float):
        self.mean, self.std = mean, std

    def encode(self, values: Tensor) -> Tensor:
        """Digit values 0..16 -> float32 of the same shape, mean 0 and standard deviation 0.5."""
        return (values.to(torch.float32) / 8 - 1 - self.mean) / self.std * 0.5

    def decode(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] float -> uint8 [B, 1, 8, 8]: digit value * 255 / 16, clipped, truncated."""
        values = (x.to(torch.float32) / 0.5 * self.std + self.mean + 1) * 8
        return (values * (255 / 16)).clip(0, 255).to(torch.uint8)


class VAEEncoder:
    """Latents of Stability's VAE, standardised per channel (EDM2 at 512x512).

    This VAE is applied to pictures in 0..1 (not -1..1, as elsewhere), and the latents carry
    their own scale and bias in place of the usual factor 0.18215. `vae_name` is a repository on
    the Hugging Face hub or a local folder in diffusers' format; it is fetched on first use.
    `dtype` is what the decoder computes in; what surrounds it stays float32. `tf32` names what of
    it may use TF32 on CUDA, whatever the network may (`erk.runtime.precision`).
    """

    dtype = torch.float32
    tf32: tuple[str, ...] = RELEASED

    def __init__(
        self,
        vae_name: str = "stabilityai/sd-vae-ft-mse",
        raw_mean: Sequence[float] = (5.81, 3.25, 0.12, -2.15),
        raw_std: Sequence[float] = (4.17, 4.62, 3.71, 3.28),
        final_mean: float = 0.0,
        final_std: float = 0.5,
        batch_size: int = 8,
        offline: bool = False,
    ):
        mean, std = torch.tensor(raw_mean), torch.tensor(raw_std)
        self.vae_name, self.batch_size = vae_name, batch_size
        self.offline = offline
        self.scale = (final_std / std).reshape(1, -1, 1, 1)
        self.bias = final_mean - mean.reshape(1, -1, 1, 1) * self.scale
        self.vae: Any = None

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """[B, 4, H, W] float -> uint8 [B, 3, 8 H, 8 W], in mini-batches of `batch_size`.

        If there are several, the last one is filled up: other sizes round differently.
        Raises DecodeError where NaN or infinity would become a colour unseen.
        """
        vae = self._load(x.device)
        raw = (x.to(torch.float32) - self.bias.to(x.device)) / self.scale.to(x.device)
        lacking = -len(x) % self.batch_size if len(x) > self.batch_size else 0
        filled = torch.cat([raw, raw[-1:].expand(lacking, -1, -1, -1)])
        parts = filled.to(self.dtype).split(self.batch_size)
        with tf32_only(self.tf32):
            decoded = [vae.decode(part).sample.to(torch.float32) for part in parts]
        images = torch.cat(decoded)[: len(x)]
        bad = (~images.flatten(1).sum(1).isfinite()).nonzero()
        if len(bad):
            raise DecodeError(f"the VAE '{self.vae_name}'", int(bad[0]))
        return (images.clamp(0, 1) * 255).to(torch.uint8)

    def _load(self, device: torch.device) -> Any:
        if self.vae is None:
            from diffusers import AutoencoderKL

            try:
                self.vae = AutoencoderKL.from_pretrained(
                    self.vae_name,
                    cache_dir=cache_dir() / "huggingface",
                    local_files_only=self.offline,
                    torch_dtype=self.dtype,
                    use_safetensors=True,  # never a pickle, whatever the repository offers
                    low_cpu_mem_usage=False,  # else a warning wherever accelerate is missing
                )
            except (OSError, ValueError, RuntimeError) as error:
                reason = str(error).strip().partition("\n")[0].rstrip(". ")
                raise OSError(
                    f"the VAE '{self.vae_name}' could not be loaded ({reason}); connect to the "
                    "network once to cache it, or give --vae a folder that holds it."
                ) from error
            self.vae.eval().requires_grad_(False)
            if device.type == "cpu" and self.dtype != torch.float32:  # which rounds worse so
                self.vae.to(memory_format=torch.channels_last)
        return self.vae.to(device)
