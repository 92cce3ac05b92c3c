"""The decoder of Stability's VAE (Rombach et al. 2022), as diffusers' AutoencoderKL holds it.

diffusers reads the files and gives the layers; the order of operations is here, so that all tensors
keep one memory layout and torch.compile sees one function. Pixels are those of diffusers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu


class Decoder(nn.Module):
    """Latents [B, 4, H, W] -> image [B, 3, 8 H, 8 W] with values about 0..1, in the same dtype."""

    def __init__(self, vae: Any):
        """Take the layers of an AutoencoderKL. Raises ValueError for blocks with attention."""
        super().__init__()
        self.enter, self.layers = vae.post_quant_conv or nn.Identity(), vae.decoder
        for kind in {*vae.config.up_block_types} - {"UpDecoderBlock2D"}:
            raise ValueError(f"a VAE with {kind} is not supported: give one of UpDecoderBlock2D")

    def forward(self, latents: Tensor) -> Tensor:
        layers: Any = self.layers
        x = layers.conv_in(self.enter(latents))
        first, *others = layers.mid_block.resnets
        x = residual(first, x)
        for attention, block in zip(layers.mid_block.attentions, others, strict=True):
            x = residual(block, x if attention is None else attend(attention, x))
        for level in layers.up_blocks:
            for block in level.resnets:
                x = residual(block, x)
            for upsampler in level.upsamplers or ():
                x = upsampler.conv(interpolate(x, scale_factor=2))
        return layers.conv_out(silu(layers.conv_norm_out(x)))


def residual(block: Any, x: Tensor) -> Tensor:
    """x [B, in, H, W] -> [B, out, H, W]."""
    y = block.conv1(silu(block.norm1(x)))
    y = block.conv2(silu(block.norm2(y)))
    return (x if block.conv_shortcut is None else block.conv_shortcut(x)) + y


def attend(block: Any, x: Tensor) -> Tensor:
    """Add self-attention over the pixels to x [B, C, H, W]."""
    rows = block.group_norm(x.flatten(2)).transpose(1, 2)  # [B, H W, C]
    q, k, v = (
        layer(rows).unflatten(2, (block.heads, -1)).transpose(1, 2)
        for layer in (block.to_q, block.to_k, block.to_v)
    )
    y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    y = block.to_out[0](y).transpose(1, 2).reshape(x.shape)
    return y + x if x.device.type == "cpu" else x + y


def pixels_of(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Decode latents to uint8 [B, 3, 8 H, 8 W], and the largest magnitude in each image [B].

    The latter is NaN or infinite if a value of the image is.
    """
    image = vae(latents).to(torch.float32)
    return (image.clamp(0, 1) * 255).to(torch.uint8), image.abs().amax((1, 2, 3))
