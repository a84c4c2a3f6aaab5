"""Chameleon's image codec in torch: what conversion and speed are held against, and a maker of checkpoints in the released layout.

Every module is called what the released file calls it, so `state_dict()` is the file's. Written from the published
layout of the layers (Esser et al. 2021, section 3 and appendix; facebookresearch/chameleon `inference/vqgan.py`), apart from the
package's own codec: neither can hide a fault of the other.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes under the names of the released yaml; the defaults are the release's."""

    embed_dim: int = 256
    n_embed: int = 8192
    z_channels: int = 256
    resolution: int = 512
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k, v = (conv(normed).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def _level(inputs: int, outputs: int, blocks: int, attention: bool) -> nn.Module:
    level = nn.Module()
    level.block = nn.ModuleList(ResnetBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
    level.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(blocks if attention else 0))
    return level


def _blocks(level: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for i, block in enumerate(level.block):
        x = block(x)
        if len(level.attn):
            x = level.attn[i](x)
    return x


def _middle(width: int) -> nn.Module:
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = ResnetBlock(width, width), AttnBlock(width), ResnetBlock(width, width)
    return mid


class Encoder(nn.Module):
    def __init__(self, s: Sizes):
        super().__init__()
        self.conv_in = nn.Conv2d(s.in_channels, s.ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = s.ch
        for i, multiple in enumerate(s.ch_mult):
            level = _level(width, s.ch * multiple, s.num_res_blocks, s.resolution // 2**i in s.attn_resolutions)
            width = s.ch * multiple
            if i < len(s.ch_mult) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = _middle(width)
        self.norm_out, self.conv_out = _norm(width), nn.Conv2d(width, s.z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = _blocks(level, x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(functional.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """`up.{i}` is the level of resolution i: the first to run is the last of the list."""

    def __init__(self, s: Sizes):
        super().__init__()
        width = s.ch * s.ch_mult[-1]
        self.conv_in = nn.Conv2d(s.z_channels, width, 3, padding=1)
        self.mid = _middle(width)
        levels = []
        for i in reversed(range(len(s.ch_mult))):
            outputs = s.ch * s.ch_mult[i]
            level = _level(width, outputs, s.num_res_blocks + 1, s.resolution // 2**i in s.attn_resolutions)
            if i > 0:
                level.upsample = Upsample(outputs)
            levels.insert(0, level)
            width = outputs
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = _norm(width), nn.Conv2d(width, s.out_ch, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(z)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        for level in reversed(self.up):
            x = _blocks(level, x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class _Quantize(nn.Module):
    def __init__(self, s: Sizes):
        super().__init__()
        self.embedding = nn.Embedding(s.n_embed, s.embed_dim)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        flat, book = z.flatten(2).transpose(1, 2).reshape(-1, z.shape[1]), self.embedding.weight
        distances = (flat**2).sum(1, keepdim=True) + (book**2).sum(1) - 2 * flat @ book.T
        return distances.argmin(1).reshape(z.shape[0], *z.shape[2:])


class VQGAN(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] to codes [B, h, w] and back."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.quantize = _Quantize(sizes)
        self.quant_conv = nn.Conv2d(sizes.z_channels, sizes.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(sizes.embed_dim, sizes.z_channels, 1)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        return self.quant_conv(self.encoder(images))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.quantize(self.latents(images))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(self.quantize.embedding(codes).permute(0, 3, 1, 2)))


def random_vqgan(sizes: Sizes, seed: int = 0) -> VQGAN:
    """A codec whose every parameter is random, and whose activations keep the size of pictures.

    Kernels have variance 1/fan-in and the codebook the spread of the latents, so that many codes occur; scales, biases and norms
    differ from one and zero, so that none can be left out unseen.
    """
    model = VQGAN(sizes).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        if name == "quantize.embedding.weight":
            value.copy_(drawn)
        elif value.ndim == 4:
            value.copy_(drawn / value[0].numel() ** 0.5)
        else:
            value.copy_(drawn * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return model
