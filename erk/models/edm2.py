"""EDM2's network: magnitude-preserving U-Net and preconditioner (Karras et al. 2024).

"Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696. Names of
parameters and buffers are those of the released files, so their state dicts load unchanged.

Parameters keep their stored type, which matters: released gains are float16, and the
published networks divide a gain by sqrt(fan-in) IN float16; doing it in float32 shifts D by 2e-4.

Optimized where clarity does not suffer (docs/performance.md): constants beside a layer are merged
into its weight (`MPConv.scale`), outputs of a layer are modified in place, and both memory layouts
work. Channels last is much faster.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import (
    avg_pool2d,
    conv2d,
    conv_transpose2d,
    dropout,
    interpolate,
    linear,
    pad,
    scaled_dot_product_attention,
    silu,
)

from erk.method.point import level_for
from erk.models.arguments import (
    Count,
    Filter,
    Multipliers,
    Positive,
    Resolution,
    Resolutions,
    Share,
    Size,
    check_levels,
)
from erk.models.layout import empty_in_layout_of, in_fast_layout

CHANNELS_LAST = ("cpu", "cuda")  # faster there, or as fast (docs/performance.md)
ALIGNMENT = 8  # channels; other numbers may miss the tensor cores of a GPU


def normalize(x: Tensor, dim: list[int], eps: float = 1e-4) -> Tensor:
    """Divide x by (eps + its root mean square over `dim`), computed in float32."""
    length = vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    count = max(1, x.numel() // length.numel())  # 0 for no channels
    return x / torch.add(eps, length, alpha=1 / math.sqrt(count)).to(x.dtype)


SILU = 0.596
"""Magnitude of SiLU of a unit normal variable (Eq. 81)."""


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps unit magnitude (Eq. 81)."""
    return silu(x) / SILU


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Blend of a and b that keeps unit magnitude (Eq. 88)."""
    of_a, of_b = mp_sum_weights(t)
    return a * of_a + b * of_b


def mp_sum_weights(t: float) -> tuple[float, float]:
    """Return the weights of a and b in `mp_sum`, to be merged into those of a layer."""
    return (1 - t) / math.hypot(1 - t, t), t / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channel concatenation with a given balance that keeps unit magnitude (Eq. 103)."""
    na, nb = a.shape[1], b.shape[1]
    scale = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    of_a, of_b = scale / math.sqrt(na) * (1 - t), scale / math.sqrt(nb) * t
    if na == nb and t == 0.5:  # both weights are 1
        return torch.cat([a, b], 1)
    if not _is_transformed() and torch.is_inference_mode_enabled():
        both = empty_in_layout_of(a, na + nb)  # each half is read and written once
        torch.mul(a, of_a, out=both[:, :na])
        torch.mul(b, of_b, out=both[:, na:])
        return both
    return torch.cat([a * of_a, b * of_b], 1)


def _is_transformed() -> bool:
    """Return whether torch.compile or a function of torch.func, which no `out=` passes, runs.

    PyTorch has no public function that tells the latter; without the private one the answer is yes.
    """
    functorch = getattr(torch._C, "_functorch", None)
    transform = getattr(functorch, "peek_interpreter_stack", lambda: "unknown")
    return torch.compiler.is_compiling() or transform() is not None


def resample(x: Tensor, mode: str, kernel: Sequence[float]) -> Tensor:
    """Return x ('keep'), or x at half ('down') or twice ('up') its resolution."""
    if mode == "keep":
        return x
    if list(kernel) == [1, 1]:  # the filter of all released networks, exactly
        return avg_pool2d(x, 2) if mode == "down" else interpolate(x, scale_factor=2)
    f = torch.tensor(kernel, dtype=torch.float32)
    f, pad, channels = f / f.sum(), (len(kernel) - 1) // 2, x.shape[1]
    weight = torch.outer(f, f).expand(channels, 1, -1, -1).to(x)
    if mode == "down":
        return conv2d(x, weight, groups=channels, stride=2, padding=pad)
    return conv_transpose2d(x, weight * 4, groups=channels, stride=2, padding=pad)


def aligned(weight: Tensor) -> Tensor:
    """Pad the channels of a weight [out, in, k, k] with zeros to multiples of ALIGNMENT."""
    return pad(weight, (0, 0, 0, 0, 0, -weight.shape[1] % ALIGNMENT, 0, -len(weight) % ALIGNMENT))


class MPConv(nn.Module):
    """Convolution, or linear layer for an empty kernel, with weights of unit magnitude (Eq. 47)."""

    scale: float  # of the output, with the constants before and after the layer
    parts: int  # interleaved groups of output channels (q, k, v), which are de-interleaved

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        scale: float = 1.0,
        parts: int = 1,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.folded: Tensor | None = None
        self.scale, self.parts = scale, parts

    def _inputs(self) -> list[int]:
        return list(range(1, self.weight.ndim))

    def effective_weight(self, gain: Tensor | None = None) -> Tensor:
        """Compute the applied weight, float32."""
        fan_in = max(1, self.weight[0].numel())  # 0 for no channels
        weight = normalize(self.weight.to(torch.float32), self._inputs())
        weight = weight.unflatten(0, (-1, self.parts)).transpose(0, 1).flatten(0, 1)
        if gain is None:
            return weight * (self.scale / math.sqrt(fan_in))
        wide = gain.to(torch.promote_types(gain.dtype, torch.float32))
        return weight * ((wide / math.sqrt(fan_in)).to(gain.dtype) * self.scale)

    def fold(self, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        """Compute the applied weight once; `forward` then ignores `gain`."""
        weight = self.effective_weight(gain).to(dtype)
        device = weight.device.type
        if weight.ndim == 4 and weight[0, 0].numel() == 1 and device in CHANNELS_LAST:
            weight = weight.flatten(1)  # a matrix product
        elif weight.ndim == 4 and device == "cuda" and dtype != torch.float32:
            weight = aligned(weight)
        self.folded = in_fast_layout(weight, CHANNELS_LAST)

    @torch.no_grad()
    def force_unit_weight(self) -> None:
        """Normalize the weight, as in training (Eq. 66)."""
        self.weight.copy_(normalize(self.weight, self._inputs()))

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        weight = self.effective_weight(gain) if self.folded is None else self.folded
        weight = weight.to(x.dtype)
        if weight.ndim == 4:
            if weight.shape[1] > x.shape[1]:  # see `aligned`
                x = pad(x, (0, 0, 0, 0, 0, weight.shape[1] - x.shape[1]))
            y = conv2d(x, weight, padding=weight.shape[-1] // 2)
            return y if y.shape[1] == len(self.weight) else y[:, : len(self.weight)]
        if x.ndim == 4:
            return linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)
        return linear(x, weight)


class MPFourier(nn.Module):
    """Random Fourier features of a number, of unit magnitude (Eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels).mul_(2 * math.pi))
        self.register_buffer("phases", torch.rand(channels).mul_(2 * math.pi))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x.to(torch.float32), self.freqs.to(torch.float32))
        return (math.sqrt(2) * (angles + self.phases.to(torch.float32)).cos()).to(x.dtype)


class Block(nn.Module):
    """Residual block of the encoder or decoder, with optional attention (Fig. 21)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        flavor: str,
        resample_mode: str = "keep",
        resample_filter: Filter = (1, 1),
        attention: bool = False,
        channels_per_head: Size = 64,
        dropout: Share | None = 0,
        res_balance: Share = 0.3,
        attn_balance: Share = 0.3,
        clip_act: Positive | None = 256,
    ):
        super().__init__()
        self.encoder = flavor == "enc"
        self.mode, self.filter, self.dropout = resample_mode, resample_filter, dropout or 0
        self.heads = out_channels // channels_per_head if attention else 0
        if self.heads and out_channels % self.heads:
            raise ValueError(f"{out_channels} channels do not divide into {self.heads} heads")
        self.clip = clip_act
        self.keep, blend = mp_sum_weights(res_balance)
        self.attn_keep, attn_blend = mp_sum_weights(attn_balance)
        self.emb_gain = nn.Parameter(torch.zeros([]))
        entry = out_channels if self.encoder else in_channels
        self.conv_res0 = MPConv(entry, out_channels, [3, 3], scale=1 / SILU)
        self.emb_linear = MPConv(emb_channels, out_channels, [])
        self.conv_res1 = MPConv(out_channels, out_channels, [3, 3], scale=blend / SILU)
        self.conv_skip = self.attn_qkv = self.attn_proj = None
        if in_channels != out_channels:
            self.conv_skip = MPConv(in_channels, out_channels, [1, 1])
        if self.heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, [1, 1], parts=3)
            self.attn_proj = MPConv(out_channels, out_channels, [1, 1], scale=attn_blend)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H', W']; emb [B or 1, out] is added to 1."""
        x = resample(x, self.mode, self.filter)
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if self.encoder:
            x = skip = normalize(skip, [1])
        x = self._residual(x, emb).add_(skip, alpha=self.keep)  # Eq. 88
        if self.attn_qkv is not None and self.attn_proj is not None:
            attended = self.attn_proj(self._attend(self.attn_qkv(x)))
            x = attended.add_(x, alpha=self.attn_keep)
        return x if self.clip is None else x.clamp_(-self.clip, self.clip)

    def _residual(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv_res0(silu(x))
        y = silu(y.mul_((emb + 1)[:, :, None, None].to(y.dtype)), inplace=True)
        return self.conv_res1(dropout(y, self.dropout, self.training))

    def _attend(self, qkv: Tensor) -> Tensor:
        """Cosine attention; the channels of `qkv` are ordered (q|k|v, head, channel)."""
        b, _, h, w = qkv.shape
        rows = qkv.permute(0, 2, 3, 1).reshape(b, h * w, 3, self.heads, -1)
        q, k, v = normalize(rows, [-1]).permute(2, 0, 3, 1, 4)  # each [B, heads, H W, channels]
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return y.reshape(b, h, w, -1).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """The raw network F(x; c_noise, labels): [B, C, R, R] -> [B, C, R, R]."""

    def __init__(
        self,
        img_resolution: Resolution,
        img_channels: Size,
        label_dim: Count,
        model_channels: Size = 192,
        channel_mult: Multipliers = (1, 2, 3, 4),
        channel_mult_noise: Size | None = None,
        channel_mult_emb: Size | None = None,
        num_blocks: Count = 3,
        attn_resolutions: Resolutions | None = (16, 8),
        label_balance: Share = 0.5,
        concat_balance: Share = 0.5,
        **block: Any,
    ):
        super().__init__()
        attn_resolutions = attn_resolutions or ()
        widths = [model_channels * mult for mult in channel_mult]
        resample_filter = block.get("resample_filter", (1, 1))
        self.image_bytes = check_levels(img_resolution, widths, num_blocks, resample_filter)
        noise = model_channels * channel_mult_noise if channel_mult_noise else widths[0]
        emb = model_channels * channel_mult_emb if channel_mult_emb else max(widths)
        self.label_dim, self.label_balance = label_dim, label_balance
        self.concat_balance = concat_balance
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, emb, [])
        self.emb_label = MPConv(label_dim, emb, []) if label_dim else None
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.folded: Tensor | None = None

        def add(to: nn.ModuleDict, name: str, c_in: int, c_out: int, **options: Any) -> None:
            to[name] = Block(c_in, c_out, emb, **options, **block)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels, skips = img_channels + 1, []
        for level, width in enumerate(widths):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = MPConv(channels, width, [3, 3])
                channels = width
            else:
                add(self.enc, f"{res}x{res}_down", channels, channels,
                    flavor="enc", resample_mode="down")  # fmt: skip
            skips.append(channels)
            for i in range(num_blocks):
                add(self.enc, f"{res}x{res}_block{i}", channels, width,
                    flavor="enc", attention=res in attn_resolutions)  # fmt: skip
                channels = width
                skips.append(channels)
        for level, width in reversed(list(enumerate(widths))):
            res = img_resolution >> level
            if level == len(widths) - 1:
                add(self.dec, f"{res}x{res}_in0", channels, channels, flavor="dec", attention=True)
                add(self.dec, f"{res}x{res}_in1", channels, channels, flavor="dec")
            else:
                add(self.dec, f"{res}x{res}_up", channels, channels,
                    flavor="dec", resample_mode="up")  # fmt: skip
            for i in range(num_blocks + 1):
                add(self.dec, f"{res}x{res}_block{i}", channels + skips.pop(), width,
                    flavor="dec", attention=res in attn_resolutions)  # fmt: skip
                channels = width
        self.out_conv = MPConv(channels, img_channels, [3, 3])
        self.widths = [len(block.emb_linear.weight) for block in self.blocks()]

    def forward(self, x: Tensor, noise_labels: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(noise_labels))
        if self.emb_label is not None and labels is not None:
            emb_label = self.emb_label(labels * math.sqrt(self.label_dim))
            emb = mp_sum(emb, emb_label, self.label_balance)  # [1 or B] and [1 or B] broadcast
        weight = self.effective_weight() if self.folded is None else self.folded
        embs = iter(linear(mp_silu(emb), weight).split(self.widths, 1))
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # stands in for biases
        x, skips = in_fast_layout(x, CHANNELS_LAST), []
        for block in self.enc.values():
            x = block(x) if isinstance(block, MPConv) else block(x, next(embs))
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = block(x, next(embs))
        return self.out_conv(x, self.out_gain)

    def blocks(self) -> list[Block]:
        """Return all blocks in forward order."""
        return [b for b in (*self.enc.values(), *self.dec.values()) if isinstance(b, Block)]

    def effective_weight(self) -> Tensor:
        """Compute the weight that maps the embedding to all blocks in one matrix product."""
        return torch.cat([b.emb_linear.effective_weight(b.emb_gain) for b in self.blocks()])

    def fold(self, dtype: torch.dtype) -> None:
        """Compute all applied weights once; those of the embedding stay float32."""
        self.folded = self.effective_weight()
        self.emb_noise.fold(torch.float32)
        if self.emb_label is not None:
            self.emb_label.fold(torch.float32)
        for name, layer in self.named_modules():
            if isinstance(layer, MPConv) and layer.weight.ndim == 4:
                layer.fold(dtype, self.out_gain if name == "out_conv" else None)


class Precond(nn.Module):
    """EDM2's denoiser: D = c_skip x + c_out F(c_in x; ln(sigma)/4, labels) (Table 8).

    `compute_dtype` is the dtype of F; None means the released rule, float16 on CUDA if
    `use_fp16`, else float32. The embedding and everything outside F stay float32.
    """

    sigma_min, sigma_max = 0.0, math.inf
    churn_rule = "edm2"  # how the sampler of the release injects noise

    def __init__(
        self,
        img_resolution: Resolution,
        img_channels: Size,
        label_dim: Count,
        use_fp16: bool = True,
        sigma_data: Positive = 0.5,
        logvar_channels: Count = 128,
        **unet: Any,
    ):
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.use_fp16, self.sigma_data = label_dim, use_fp16, sigma_data
        self.compute_dtype: torch.dtype | None = None
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1, [])

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma) [B, C, R, R] float32; sigma [] or [B]; labels [B, label_dim] float or None.

        Missing labels of a conditional network mean zeros; label_dim 0 ignores labels.
        """
        x = x.to(torch.float32)
        sigma = level_for(x, sigma)
        vectors = None
        if self.label_dim:
            none = x.new_zeros([1, self.label_dim])
            vectors = none if labels is None else labels.to(x).reshape(-1, self.label_dim)
        total = sigma**2 + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        c_in, c_noise = 1 / total.sqrt(), sigma.flatten().log() / 4
        f = self.unet((c_in * x).to(self.dtype_on(x.device)), c_noise, vectors)
        return c_skip * x + c_out * f.to(torch.float32).contiguous()

    def log_variance(self, sigma: Tensor) -> Tensor:
        """Compute u(sigma), the learned log loss at each noise level: [N] -> [N, 1, 1, 1]."""
        c_noise = sigma.to(torch.float32).flatten().log() / 4
        return self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)

    def fold(self) -> None:
        """Compute all applied weights once; for inference, where they do not change."""
        self.unet.fold(self.dtype_on(self.unet.out_gain.device))
        self.logvar_linear.fold(torch.float32)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Return sigma: the network is trained for all noise levels."""
        return sigma

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Return the dtype of F on a device."""
        if self.compute_dtype is not None:
            return self.compute_dtype
        return torch.float16 if self.use_fp16 and device.type == "cuda" else torch.float32
