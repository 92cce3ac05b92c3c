"""Encoders: conversion of samples to uint8 images."""

from typing import Any, Protocol

import torch
from torch import Tensor

from erk.io.download import cache_dir
from erk.models.arguments import Number, PerChannel, Positive, PositivePerChannel, Size
from erk.models.compiling import compile_function
from erk.models.vae import Decoder, pixels_of
from erk.runtime.precision import RELEASED, tf32_only


class DecodeError(FloatingPointError):
    """Samples or decoded images hold NaN or infinity; `sample` is the index in the batch."""

    def __init__(self, source: str, sample: int, name: str = ""):
        self.source, self.sample = source, sample
        super().__init__(
            f"{source} returned NaN or infinity for {name or f'sample {sample} of the batch'}; "
            "check its weights, and that network and decoder belong together"
        )

    def named(self, name: str) -> "DecodeError":
        """Return a copy of this error that names the sample."""
        return DecodeError(self.source, self.sample, name)


def check_finite(values: Tensor, source: str) -> Tensor:
    """Return values [B, ...] unless some are NaN or infinite, which would become black or white.

    Raises DecodeError that names where they are from.
    """
    finite = values.isfinite()
    bad = (~(finite.flatten(1).all(1) if finite.ndim > 1 else finite)).nonzero()
    if len(bad):
        raise DecodeError(source, int(bad[0]))
    return values


IMAGE_CHANNELS = (1, 3)  # grey and RGB


class Encoder(Protocol):
    """Interface that a model needs to decode samples."""

    channels: tuple[int, ...]
    """Numbers of channels that it decodes to grey or RGB images."""

    def decode(self, x: Tensor) -> Tensor:
        """Decode x [B, C, H, W], of standard deviation 0.5, to uint8 [B, C', H', W']."""
        ...


class PixelEncoder:
    """Pixels: -1..1 maps to 0..255 (EDM, EDM2 at 64x64)."""

    channels: tuple[int, ...] = IMAGE_CHANNELS

    def decode(self, x: Tensor) -> Tensor:
        """Convert [B, C, H, W] float to uint8 of the same shape, truncating as published."""
        x = check_finite(x, "the network")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # EDM decodes float64 states
        return (wide * 127.5 + 128).clip(0, 255).to(torch.uint8)


class DigitsEncoder:
    """Scikit-learn's digits (0..16), standardised by two scalars to mean 0, deviation 0.5."""

    channels: tuple[int, ...] = (1,)

    def __init__(self, mean: Number, std: Positive):
        self.mean, self.std = mean, std

    def encode(self, values: Tensor) -> Tensor:
        """Standardize digit values 0..16 to float32 with mean 0 and standard deviation 0.5."""
        return (values.to(torch.float32) / 8 - 1 - self.mean) / self.std * 0.5

    def decode(self, x: Tensor) -> Tensor:
        """Convert [B, 1, 8, 8] float to uint8: digit value * 255 / 16, clipped and truncated."""
        x = check_finite(x, "the network")
        values = (x.to(torch.float32) / 0.5 * self.std + self.mean + 1) * 8
        return (values * (255 / 16)).clip(0, 255).to(torch.uint8)


class PixelUnshuffleEncoder:
    """Lossless latents: standardized pixels, each block of factor x factor pixels as channels.

    Parameters
    ----------
    mean, std
        Statistics of pixel values 0..1, over the training images.
    factor
        Edge of a block; an image [C, H, W] has latents [C factor^2, H / factor, W / factor].
    """

    def __init__(self, mean: Number, std: Positive, factor: Size = 2):
        self.mean, self.std, self.factor = mean, std, factor
        self.channels: tuple[int, ...] = tuple(count * factor**2 for count in IMAGE_CHANNELS)

    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 [B, C, H, W] as float32 latents of mean 0 and standard deviation 0.5."""
        values = (images.to(torch.float32) / 255 - self.mean) / self.std * 0.5
        return torch.nn.functional.pixel_unshuffle(values, self.factor)

    def decode(self, x: Tensor) -> Tensor:
        """Decode float latents to the nearest uint8 [B, C, H, W]."""
        x = check_finite(x, "the network").to(torch.float32)
        pixels = torch.nn.functional.pixel_shuffle(x, self.factor)
        return ((pixels / 0.5 * self.std + self.mean) * 255).round().clip(0, 255).to(torch.uint8)


class VAEEncoder:
    """Latents of Stability's VAE, standardized per channel (EDM2 at 512x512).

    This VAE is applied to images in 0..1 (not -1..1, as usual), and the latents have a scale and
    bias per channel in place of the usual factor 0.18215.

    Parameters
    ----------
    vae_name
        Repository on the Hugging Face hub, or a folder in diffusers' format; loaded on first use.
    raw_mean, raw_std
        Statistics of the VAE's latents, per channel or one number.
    final_mean, final_std
        Statistics of the network's data, one number or one per channel.
    batch_size
        Latents decoded at a time.
    offline
        Use the download cache only.

    Attributes
    ----------
    dtype
        dtype of the decoder's computations; scaling is always float32.
    tf32
        Operations of the decoder that may use TF32 on CUDA (`erk.runtime.precision`).
    compiled
        Whether the decoder is compiled, at its first call.
    """

    channels: tuple[int, ...] = (4,)
    dtype = torch.float32
    tf32: tuple[str, ...] = RELEASED
    compiled = False

    def __init__(
        self,
        vae_name: str = "stabilityai/sd-vae-ft-mse",
        raw_mean: PerChannel = (5.81, 3.25, 0.12, -2.15),
        raw_std: PositivePerChannel = (4.17, 4.62, 3.71, 3.28),
        final_mean: PerChannel = 0.0,
        final_std: PositivePerChannel = 0.5,
        batch_size: Size = 8,
        offline: bool = False,
    ):
        mean, std, new_mean, new_std = (
            torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
            for values in (raw_mean, raw_std, final_mean, final_std)
        )
        self.vae_name, self.batch_size = vae_name, batch_size
        self.offline = offline
        self.scale = new_std / std
        self.bias = new_mean - mean * self.scale
        self.vae: Any = None  # latents -> image, see `erk.models.vae`
        self._pixels_of = pixels_of

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Decode [B, 4, H, W] float to uint8 [B, 3, 8 H, 8 W], in mini-batches of `batch_size`.

        The last of several mini-batches is padded, since other sizes round differently. Raises
        DecodeError for NaN or infinity, which would otherwise become a colour silently.
        """
        x = check_finite(x, "the network").to(torch.float32)
        vae = self._load(x.device)
        raw = (x - self.bias.to(x.device)) / self.scale.to(x.device)
        padding = -len(x) % self.batch_size if len(x) > self.batch_size else 0
        padded = torch.cat([raw, raw[-1:].expand(padding, -1, -1, -1)])
        images, largest = [], []
        with tf32_only(self.tf32):
            for part in padded.to(self.dtype).split(self.batch_size):
                pixels, peaks = self._pixels_of(vae, part)
                images.append(pixels.clone())  # the next call of a CUDA graph overwrites its result
                largest.append(peaks.clone())
        check_finite(torch.cat(largest)[: len(x)], f"the VAE '{self.vae_name}'")
        return torch.cat(images)[: len(x)]

    def _load(self, device: torch.device) -> Any:
        if self.vae is None:
            vae = self._read().eval().requires_grad_(False)
            if self.compiled:
                self._pixels_of = compile_function(pixels_of, device)
            if self.compiled or (device.type == "cpu" and self.dtype != torch.float32):
                vae.to(memory_format=torch.channels_last)  # lower precision rounds worse otherwise
            self.vae = vae
        return self.vae.to(device)

    def _read(self) -> Decoder:
        """Read the VAE's files, downloading them first if needed. Raises OSError or ValueError."""
        from diffusers import AutoencoderKL

        try:
            vae = AutoencoderKL.from_pretrained(
                self.vae_name,
                cache_dir=cache_dir() / "huggingface",
                local_files_only=self.offline,
                torch_dtype=self.dtype,
                use_safetensors=True,  # never load pickles
                low_cpu_mem_usage=False,  # else a warning if accelerate is missing
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(". ")
            raise OSError(
                f"the VAE '{self.vae_name}' could not be loaded ({reason}); connect to the "
                "network once to cache it, or set --vae to a folder that contains it."
            ) from error
        return Decoder(vae)
