"""The networks of EDM (Karras et al. 2022): two U-Nets and the four preconditioners.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)                               (Eq. 7)

                  c_skip             c_out          c_in                c_noise     (Table 1)
    EDMPrecond    s^2/(sigma^2+s^2)  sigma s/rms    1/rms               ln(sigma)/4
    VPPrecond     1                  -sigma         1/sqrt(sigma^2+1)   (M-1) sigma_inv(sigma)
    VEPrecond     1                  sigma          1                   ln(sigma/2)
    iDDPMPrecond  1                  -sigma         1/sqrt(sigma^2+1)   M-1-argmin|u-sigma|

with s = sigma_data and rms = sqrt(sigma^2 + s^2). Names of parameters and buffers are those of the
released files. The classes load and sample: `dropout` and `label_dropout` are accepted because the
files record them, but nothing is dropped, and weights start at torch's defaults.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import silu

from erk.method.point import level_for
from erk.models.arguments import (
    Count,
    Filter,
    Limit,
    Magnitude,
    Multipliers,
    Positive,
    Resolution,
    Resolutions,
    Share,
    Size,
    check_levels,
)
from erk.models.layout import in_fast_layout

CHANNELS_LAST = ("cpu",)  # faster there; on CUDA as released, where group norm is channels first
MAX_LEVELS = 10_000  # of an iDDPM; the released one has 1000


def check_choice(name: str, value: Any, *choices: str) -> None:
    """Raise ValueError if an argument is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}.")


# Layers. Parameters are float32; a layer computes in the dtype of its input.

Resample = Callable[..., Tensor]  # halve or double


def filter_taps(resample_filter: Sequence[float]) -> Tensor:
    """Separable filter f [k] -> its taps [1, 1, k, k], which sum to 1."""
    f = torch.tensor(resample_filter, dtype=torch.float32)
    return (f.outer(f) / f.sum().square())[None, None]


def filter_padding(taps: Tensor) -> int:
    return (taps.shape[-1] - 1) // 2


def halve(x: Tensor, taps: Tensor, padding: int | None = None) -> Tensor:
    """Filter each channel of x [B, C, H, W] and keep every second value."""
    padding = filter_padding(taps) if padding is None else padding
    weight = taps.to(x.dtype).expand(x.shape[1], -1, -1, -1)
    return F.conv2d(x, weight, stride=2, padding=padding, groups=x.shape[1])


def double(x: Tensor, taps: Tensor) -> Tensor:
    """Interleave x [B, C, H, W] with zeros and filter it; times 4, as 3 of 4 values are zeros."""
    weight = (4 * taps).to(x.dtype).expand(x.shape[1], -1, -1, -1)
    padding = filter_padding(taps)
    return F.conv_transpose2d(x, weight, stride=2, padding=padding, groups=x.shape[1])


class Resampler(nn.Module):
    """Half or twice the height and width: the skip of a block that keeps its channels."""

    resample_filter: Tensor

    def __init__(self, resample: Resample, resample_filter: Sequence[float]):
        super().__init__()
        self.resample = resample
        self.register_buffer("resample_filter", filter_taps(resample_filter))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x, self.resample_filter)


class Conv2d(nn.Conv2d):
    """Convolution that keeps height and width, of x or of x resampled by 2."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        resample: Resample | None = None,
        resample_filter: Sequence[float] = (1, 1),
    ):
        super().__init__(in_channels, out_channels, kernel)
        self.resample = resample
        if resample:  # the files hold a filter only where it is used
            self.register_buffer("resample_filter", filter_taps(resample_filter))

    def forward(self, x: Tensor) -> Tensor:
        if self.resample:
            x = self.resample(x, self.resample_filter)
        return self.convolve(x)

    def convolve(self, x: Tensor, pad_more: int = 0) -> Tensor:
        padding = self.kernel_size[0] // 2 + pad_more
        assert self.bias is not None
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=padding)


class FusedDownConv2d(Conv2d):
    """Convolution, then half the size; all padding is in the convolution, none in the filter."""

    def __init__(self, in_channels: int, out_channels: int, resample_filter: Sequence[float]):
        super().__init__(in_channels, out_channels, 3, halve, resample_filter)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolve(x, pad_more=filter_padding(self.resample_filter))
        return halve(x, self.resample_filter, padding=0)


class GroupNorm(nn.GroupNorm):
    """At most 32 groups of at least 4 channels; torch keeps the statistics in float32."""

    def __init__(self, channels: int, eps: float):
        super().__init__(min(32, channels // 4), channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def cos_and_sin(angles: Tensor) -> Tensor:
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class PositionalEmbedding(nn.Module):
    """c_noise [B] -> cosines and sines [B, channels] at frequencies from 1 down to 1/10000.

    With `endpoint` the last frequency is 1/10000, else one step short of it.
    """

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=c_noise.device)
        freqs = (1 / 10000) ** (steps / (half - self.endpoint))
        return cos_and_sin(c_noise.outer(freqs))


class FourierEmbedding(nn.Module):
    """c_noise [B] -> cosines and sines [B, channels] at random frequencies, kept in a buffer.

    The buffer keeps its stored type: the original rounds 2 pi freqs to it.
    """

    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2).mul_(16))

    def forward(self, c_noise: Tensor) -> Tensor:
        return cos_and_sin(c_noise.outer((2 * math.pi * self.freqs).to(c_noise.dtype)))


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention over the pixels: [B, 3 C, H, W] -> [B, C, H, W].

    The channels of qkv count (head, channel of the head, q or k or v), the last one fastest.
    scaled_dot_product_attention does its softmax in float32 whatever the dtype.
    """
    batch, channels, height, width = qkv.shape
    split = qkv.reshape(batch, heads, channels // (3 * heads), 3, height * width)
    q, k, v = split.permute(3, 0, 1, 4, 2).contiguous()  # the fast kernels want channels last
    y = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, channels of the head]
    return y.transpose(2, 3).reshape(batch, channels // 3, height, width)


class UNetBlock(nn.Module):
    """Residual block conditioned on the noise level, with optional self-attention.

    x [B, in, H, W], emb [B or 1, emb_channels] float32 -> [B, out, H', W'].
    """

    eps: float  # of every norm
    skip_scale: float
    channels_per_head: int | None  # None: one head; fewer channels than this: no attention
    skip_always_convolves: bool  # else only where the number of channels changes
    affine_outputs: int  # values of the embedding per channel

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        resample_filter: Sequence[float] = (1, 1),
        resample: Resample | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.norm0 = GroupNorm(in_channels, self.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, resample, resample_filter)
        self.affine = nn.Linear(emb_channels, out_channels * self.affine_outputs)
        self.norm1 = GroupNorm(out_channels, self.eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels or (resample and self.skip_always_convolves):
            self.skip = Conv2d(in_channels, out_channels, 1, resample, resample_filter)
        elif resample:
            self.skip = Resampler(resample, resample_filter)
        heads = out_channels // self.channels_per_head if self.channels_per_head else 1
        self.num_heads = heads if attention else 0
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels do not divide into {self.num_heads} heads")
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, self.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(silu(self.norm0(x)))
        affine = self.affine(emb)[:, :, None, None].to(x.dtype)
        h = self.conv1(silu(self.conditioned(h, affine)))
        x = self.summed(h, self.skip(x))
        if self.num_heads:
            y = self.proj(attend(self.qkv(self.norm2(x)), self.num_heads))
            x = self.summed(y, x)
        return x

    def summed(self, h: Tensor, x: Tensor) -> Tensor:
        """Add x to the output h of a convolution, in place, and scale the sum."""
        h.add_(x)
        return h if self.skip_scale == 1 else h.mul_(self.skip_scale)

    def conditioned(self, h: Tensor, affine: Tensor) -> Tensor:
        """Normalize h by norm1 and condition it on the noise level."""
        raise NotImplementedError


class SongBlock(UNetBlock):
    """Block of SongUNet: the embedding shifts h before the norm."""

    eps, skip_scale, channels_per_head = 1e-6, math.sqrt(0.5), None
    skip_always_convolves, affine_outputs = True, 1

    def conditioned(self, h: Tensor, affine: Tensor) -> Tensor:
        return self.norm1(h + affine)


class DhariwalBlock(UNetBlock):
    """Block of DhariwalUNet: the embedding scales and shifts h after the norm."""

    eps, skip_scale, channels_per_head = 1e-5, 1.0, 64
    skip_always_convolves, affine_outputs = False, 2

    def conditioned(self, h: Tensor, affine: Tensor) -> Tensor:
        scale, shift = affine.chunk(2, dim=1)
        return torch.addcmul(shift, self.norm1(h), scale + 1)


# The U-Nets.


class Level(NamedTuple):
    """One resolution of a U-Net."""

    name: str  # as the keys spell it: "64x64"
    width: int  # channels
    attention: bool


def unet_levels(
    img_resolution: int, widths: Sequence[int], attn_resolutions: Sequence[int]
) -> list[Level]:
    sizes = [(img_resolution >> depth, width) for depth, width in enumerate(widths)]
    return [Level(f"{size}x{size}", width, size in attn_resolutions) for size, width in sizes]


def encoder(
    levels: Sequence[Level],
    channels: tuple[int, int],
    num_blocks: int,
    block: Callable[..., UNetBlock],
    kind: str = "standard",
    resample_filter: Sequence[float] = (1, 1),
) -> tuple[nn.ModuleDict, list[int]]:
    """Build the encoder and list the channels of its skips.

    `channels`: into and out of the first layer. At every lower level, the kind "residual" adds the
    input as convolved and halved so far (NCSN++), "skip" a projection of the halved input.
    """
    aux, width = channels
    enc, skips = nn.ModuleDict({f"{levels[0].name}_conv": Conv2d(aux, width, 3)}), [width]
    for level in levels:
        if level is not levels[0]:
            enc[f"{level.name}_down"] = block(width, width, resample=halve)
            skips.append(width)
            if kind == "residual":
                enc[f"{level.name}_aux_residual"] = FusedDownConv2d(aux, width, resample_filter)
                aux = width
            elif kind == "skip":
                enc[f"{level.name}_aux_down"] = Resampler(halve, resample_filter)
                enc[f"{level.name}_aux_skip"] = Conv2d(aux, width, 1)
        for i in range(num_blocks):
            enc[f"{level.name}_block{i}"] = block(width, level.width, attention=level.attention)
            width = level.width
            skips.append(width)
    return enc, skips


def decoder(
    levels: Sequence[Level],
    skips: list[int],
    num_blocks: int,
    block: Callable[..., UNetBlock],
    attend_once: bool,
) -> nn.ModuleDict:
    """Build a block per skip; with `attend_once` only a level's last block has attention."""
    dec, width = nn.ModuleDict(), levels[-1].width
    for level in reversed(levels):
        if level is levels[-1]:
            dec[f"{level.name}_in0"] = block(width, width, attention=True)
            dec[f"{level.name}_in1"] = block(width, width)
        else:
            dec[f"{level.name}_up"] = block(width, width, resample=double)
        for i in range(num_blocks + 1):
            attention = level.attention and (i == num_blocks or not attend_once)
            in_channels = width + skips.pop()
            dec[f"{level.name}_block{i}"] = block(in_channels, level.width, attention=attention)
            width = level.width
    return dec


class UNet(nn.Module):
    """Forward pass of SongUNet and DhariwalUNet: embedding, encoder, decoder with skips, head."""

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None
    ) -> Tensor:
        """F [B, C', H, W] in the dtype of x [B, C, H, W].

        c_noise [B or 1], labels [B or 1, label_dim] and augment [B, augment_dim] are float32;
        None: not used.
        """
        emb = self.embedding(c_noise, labels, augment)  # [B or 1, emb_channels] float32
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if name.endswith("_aux_residual"):  # replaces the skip of the `_down` before it
                x = skips[-1] = aux = (x + module(aux)) * math.sqrt(0.5)
            elif name.endswith("_aux_down"):
                aux = module(aux)
            elif name.endswith("_aux_skip"):
                x = skips[-1] = x + module(aux)
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                skips.append(x)
        outputs: dict[str, Tensor] = {}  # of the levels, from the lowest resolution
        for name, module in self.dec.items():
            if isinstance(module, UNetBlock):
                x = module(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
                outputs[name.partition("_")[0]] = x
        return self.head(outputs)

    def embedding(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        raise NotImplementedError

    def head(self, outputs: dict[str, Tensor]) -> Tensor:
        """Compute F from the outputs of the decoder's levels by name, the lowest first."""
        raise NotImplementedError


class SongUNet(UNet):
    """DDPM++ (positional, standard) and NCSN++ (fourier, residual) of Song et al. 2021.

    A decoder "skip" sums an output of every level, doubled from level to level. Raises ValueError
    for an unknown type.
    """

    def __init__(
        self,
        *,
        img_resolution: Resolution,
        in_channels: Size,
        out_channels: Size,
        label_dim: Count = 0,
        augment_dim: Count = 0,
        model_channels: Size = 128,
        channel_mult: Multipliers = (1, 2, 2, 2),
        channel_mult_emb: Size = 4,
        num_blocks: Count = 4,
        attn_resolutions: Resolutions | None = (16,),
        dropout: Share = 0.0,
        label_dropout: Share = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: Size = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Filter = (1, 1),
    ):
        super().__init__()
        check_choice("embedding_type", embedding_type, "positional", "fourier")
        check_choice("encoder_type", encoder_type, "standard", "skip", "residual")
        check_choice("decoder_type", decoder_type, "standard", "skip")
        noise, emb = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        positional = embedding_type == "positional"
        self.map_noise = PositionalEmbedding(noise, True) if positional else FourierEmbedding(noise)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)

        widths = [model_channels * mult for mult in channel_mult]
        self.image_bytes = check_levels(img_resolution, widths, num_blocks, resample_filter)
        levels = unet_levels(img_resolution, widths, attn_resolutions or ())
        block = partial(SongBlock, emb_channels=emb, resample_filter=resample_filter)
        first = (in_channels, model_channels)
        self.enc, skips = encoder(levels, first, num_blocks, block, encoder_type, resample_filter)
        self.dec = decoder(levels, skips, num_blocks, block, attend_once=True)
        for level in levels if decoder_type == "skip" else levels[:1]:
            if decoder_type == "skip" and level is not levels[-1]:
                self.dec[f"{level.name}_aux_up"] = Resampler(double, resample_filter)
            self.dec[f"{level.name}_aux_norm"] = GroupNorm(level.width, SongBlock.eps)
            self.dec[f"{level.name}_aux_conv"] = Conv2d(level.width, out_channels, 3)

    def embedding(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(c_noise).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)  # as these networks were trained
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        return silu(self.map_layer1(silu(self.map_layer0(emb))))

    def head(self, outputs: dict[str, Tensor]) -> Tensor:
        total: Tensor | None = None
        for name, x in outputs.items():
            if f"{name}_aux_conv" in self.dec:
                y = self.dec[f"{name}_aux_conv"](silu(self.dec[f"{name}_aux_norm"](x)))
                total = y if total is None else y + self.dec[f"{name}_aux_up"](total)
        assert total is not None
        return total


class DhariwalUNet(UNet):
    """ADM of Dhariwal and Nichol 2021."""

    def __init__(
        self,
        *,
        img_resolution: Resolution,
        in_channels: Size,
        out_channels: Size,
        label_dim: Count = 0,
        augment_dim: Count = 0,
        model_channels: Size = 192,
        channel_mult: Multipliers = (1, 2, 3, 4),
        channel_mult_emb: Size = 4,
        num_blocks: Count = 3,
        attn_resolutions: Resolutions | None = (32, 16, 8),
        dropout: Share = 0.0,
        label_dropout: Share = 0.0,
    ):
        super().__init__()
        noise, emb = model_channels, model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(noise, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)
        self.map_label = nn.Linear(label_dim, emb, bias=False) if label_dim else None

        widths = [model_channels * mult for mult in channel_mult]
        self.image_bytes = check_levels(img_resolution, widths, num_blocks, (1, 1))
        levels = unet_levels(img_resolution, widths, attn_resolutions or ())
        block = partial(DhariwalBlock, emb_channels=emb)
        self.enc, skips = encoder(levels, (in_channels, widths[0]), num_blocks, block)
        self.dec = decoder(levels, skips, num_blocks, block, attend_once=False)
        self.out_norm = GroupNorm(widths[0], DhariwalBlock.eps)
        self.out_conv = Conv2d(widths[0], out_channels, 3)

    def embedding(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        emb = self.map_noise(c_noise)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels)
        return silu(emb)

    def head(self, outputs: dict[str, Tensor]) -> Tensor:
        *_, x = outputs.values()
        return self.out_conv(silu(self.out_norm(x)))


# The preconditioners, one for each row of the table above.

UNETS: dict[str, type[UNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
Scales = tuple[Tensor | float, Tensor, Tensor | float, Tensor]  # c_skip, c_out, c_in, c_noise


class Precond(nn.Module):
    """Denoiser D(x; sigma): the U-Net F = `model` with the scales of a subclass.

    F computes in `compute_dtype`; None is the released rule: float16 on CUDA if `use_fp16`, else
    float32. F's noise embedding and everything outside F are float32 always. Further arguments
    are the U-Net's. Raises ValueError for an unknown model_type.
    """

    sigma_min: float
    sigma_max: float
    outputs = 1  # channels of F for each channel of x
    default_type = "DhariwalUNet"  # of model_type
    churn_rule = "edm"  # how the sampler of the release injects noise

    def __init__(
        self,
        *,
        img_resolution: Resolution,
        img_channels: Size,
        model_type: str | None = None,
        label_dim: Count = 0,
        use_fp16: bool = False,
        **unet: Any,
    ):
        super().__init__()
        model_type = self.default_type if model_type is None else model_type
        check_choice("model_type", model_type, *UNETS)
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.use_fp16 = label_dim, use_fp16
        self.compute_dtype: torch.dtype | None = None
        self.model = UNETS[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=self.outputs * img_channels,
            label_dim=label_dim,
            **unet,
        )

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W], sigma [] or [B], labels [B, label_dim] -> D [B, C, H, W] float32.

        No labels mean zeros; a net with label_dim 0 ignores labels. augment_labels are those of
        training; sampling gives none. Raises ValueError for labels of another width.
        """
        x = x.to(torch.float32)
        sigma = level_for(x, torch.as_tensor(sigma, dtype=torch.float32))
        c_skip, c_out, c_in, c_noise = self.scales(sigma)
        x_in = in_fast_layout((c_in * x).to(self.dtype_on(x.device)), CHANNELS_LAST)
        f = self.model(x_in, c_noise.flatten(), self.label_rows(labels, x), augment_labels)
        f = f[:, : self.img_channels].to(torch.float32)
        return c_skip * x + c_out * f.contiguous()  # Eq. 7

    def fold(self) -> None:
        """Convert the weights of convolutions once; for inference, where they do not change."""
        dtype = self.dtype_on(next(self.parameters()).device)
        for layer in self.modules():
            if isinstance(layer, Conv2d | GroupNorm):
                layer.to(dtype)
            if isinstance(layer, Conv2d):
                layer.weight.data = in_fast_layout(layer.weight.data, CHANNELS_LAST)

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Return the dtype of F on a device."""
        released = torch.float16 if self.use_fp16 and device.type == "cuda" else torch.float32
        return self.compute_dtype or released

    def label_rows(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Return labels for the U-Net: float32 [B or 1, label_dim]; None if unconditional."""
        if self.label_dim == 0:
            return None
        if labels is None:
            return x.new_zeros(1, self.label_dim)
        if labels.shape[-1] != self.label_dim:
            raise ValueError(f"labels must be [B, {self.label_dim}], not {list(labels.shape)}.")
        return labels.to(x).reshape(-1, self.label_dim)

    def scales(self, sigma: Tensor) -> Scales:
        """Compute the row of Table 1 for sigma [B or 1, 1, 1, 1]."""
        raise NotImplementedError

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Round to the nearest noise level of training; same shape and dtype."""
        return torch.as_tensor(sigma)


class EDMPrecond(Precond):
    """Karras et al. 2022."""

    def __init__(
        self,
        *,
        sigma_min: Magnitude = 0.0,
        sigma_max: Limit = math.inf,
        sigma_data: Positive = 0.5,
        **net: Any,
    ):
        super().__init__(**net)
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data

    def scales(self, sigma: Tensor) -> Scales:
        variance = sigma**2 + self.sigma_data**2
        c_out = sigma * self.sigma_data / variance.sqrt()
        return self.sigma_data**2 / variance, c_out, 1 / variance.sqrt(), sigma.log() / 4


class VPPrecond(Precond):
    """Variance preserving (Song et al. 2021): time t from epsilon_t to 1."""

    default_type = "SongUNet"

    def __init__(
        self,
        *,
        beta_d: Positive = 19.9,
        beta_min: Magnitude = 0.1,
        M: Size = 1000,
        epsilon_t: Share = 1e-5,
        **net: Any,
    ):
        super().__init__(**net)
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t
        with torch.device("cpu"):  # values are needed on the meta device too
            self.sigma_min, self.sigma_max = self.sigma(torch.tensor([epsilon_t, 1.0])).tolist()

    def scales(self, sigma: Tensor) -> Scales:
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * self.sigma_inv(sigma)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return the noise level at time t."""
        t = torch.as_tensor(t)
        return ((0.5 * self.beta_d * t**2 + self.beta_min * t).exp() - 1).sqrt()

    def sigma_inv(self, sigma: Tensor | float) -> Tensor:
        """Return the time at which the noise level is sigma."""
        growth = (1 + torch.as_tensor(sigma) ** 2).log()
        return ((self.beta_min**2 + 2 * self.beta_d * growth).sqrt() - self.beta_min) / self.beta_d


class VEPrecond(Precond):
    """Variance exploding (Song et al. 2021)."""

    default_type = "SongUNet"

    def __init__(self, *, sigma_min: Positive = 0.02, sigma_max: Positive = 100.0, **net: Any):
        super().__init__(**net)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def scales(self, sigma: Tensor) -> Scales:
        return 1.0, sigma, 1.0, (0.5 * sigma).log()


def iddpm_levels(C_1: float, C_2: float, M: int) -> Tensor:
    """Compute u [M + 1] float32 of Table 1 on the CPU: u[j - 1] from u[j], with u[M] = 0.

    Raises ValueError for more than MAX_LEVELS, which a file may request.
    """
    if not 0 < M <= MAX_LEVELS:
        raise ValueError(f"M must be between 1 and {MAX_LEVELS}, not {M}")
    j = torch.arange(M + 1, dtype=torch.float32, device="cpu")
    alpha_bar = (0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2
    growth = (alpha_bar[:-1] / alpha_bar[1:]).clamp(min=C_1)
    u = torch.zeros_like(j)
    for k in range(M, 0, -1):
        u[k - 1] = ((u[k] ** 2 + 1) / growth[k - 1] - 1).sqrt()
    return u


class iDDPMPrecond(Precond):  # noqa: N801 (the released name)
    """iDDPM (Nichol and Dhariwal 2021): trained only at the M noise levels u, from high to low.

    u is a buffer in the files: recomputed values depend on the rounding of sin. F also
    predicts a variance, in the second half of its channels, which D does not use.
    """

    u: Tensor
    outputs = 2

    def __init__(self, *, C_1: Share = 0.001, C_2: Share = 0.008, M: Size = 1000, **net: Any):
        u = iddpm_levels(C_1, C_2, M)
        super().__init__(**net)
        self.M = M
        self.register_buffer("u", u)

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return float(self.u[self.M - 1])

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return float(self.u[0])

    def nearest(self, sigma: Tensor) -> Tensor:
        """Return the index of the entry of u nearest to sigma; same shape."""
        return (sigma.to(self.u)[..., None] - self.u).abs().argmin(dim=-1)

    def scales(self, sigma: Tensor) -> Scales:
        c_noise = (self.M - 1 - self.nearest(sigma)).to(torch.float32)
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma)
        return self.u[self.nearest(sigma)].to(sigma)
