"""Meta's layout in torch, for tests: random shards as published, and the forward pass that they mean.

Written from the published description of facebookresearch/chameleon `inference/{transformer,loader}.py` (names, cuts,
interleaved RoPE, LayerNorm of queries and keys per rank); nothing of the package under test is used.
"""

import dataclasses
import json

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Sizes:
    dim: int = 32
    n_layers: int = 2
    n_heads: int = 8
    n_kv_heads: int = 4
    hidden: int = 96
    vocab: int = 96
    swin: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self):
        return self.dim // self.n_heads

    @property
    def params(self):
        """params.json; the width comes from two thirds of 4 dim, rounded up."""
        return {
            "model": {
                "dim": self.dim, "n_layers": self.n_layers, "n_heads": self.n_heads, "n_kv_heads": self.n_kv_heads,
                "multiple_of": 32, "ffn_dim_multiplier": None, "norm_eps": self.norm_eps, "rope_theta": self.rope_theta,
                "qk_normalization": True, "swin_norm": self.swin, "vocab_size": self.vocab,
            },
        }  # fmt: skip


def random_shards(sizes, ranks, dtype=torch.float32, seed=0):
    """State dicts of every rank; norms that the ranks share are equal, the rest is each rank's own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, centre=0.0, std=0.15):
        return (centre + std * torch.randn(*shape, generator=generator)).to(dtype)

    s, h = sizes, sizes.head_dim
    shared = {"norm.weight": normal(s.dim, centre=1.0)}
    for i in range(s.n_layers):
        shared[f"layers.{i}.attention_norm.weight"] = normal(s.dim, centre=1.0)
        shared[f"layers.{i}.ffn_norm.weight"] = normal(s.dim, centre=1.0)
    shards = []
    for _ in range(ranks):
        state = {"tok_embeddings.weight": normal(s.vocab, s.dim // ranks, std=1.0)}
        for i in range(s.n_layers):
            at = f"layers.{i}."
            state[at + "attention.wq.weight"] = normal(s.n_heads * h // ranks, s.dim)
            state[at + "attention.wk.weight"] = normal(s.n_kv_heads * h // ranks, s.dim)
            state[at + "attention.wv.weight"] = normal(s.n_kv_heads * h // ranks, s.dim)
            state[at + "attention.wo.weight"] = normal(s.dim, s.n_heads * h // ranks)
            for name in ("q", "k"):
                state[at + f"attention.{name}_normalization.weight"] = normal(h, centre=1.0)
                state[at + f"attention.{name}_normalization.bias"] = normal(h)
            state[at + "feed_forward.w1.weight"] = normal(s.hidden // ranks, s.dim)
            state[at + "feed_forward.w3.weight"] = normal(s.hidden // ranks, s.dim)
            state[at + "feed_forward.w2.weight"] = normal(s.dim, s.hidden // ranks)
        state["output.weight"] = normal(s.vocab // ranks, s.dim)
        state["rope.freqs"] = torch.zeros(h // 2)
        shards.append(state | {name: value.clone() for name, value in shared.items()})
    return shards


def write(folder, sizes, shards):
    """The folder of one model: params.json and consolidated*.pth."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(sizes.params))
    names = ["consolidated.pth"] if len(shards) == 1 else [f"consolidated.{i:02}.pth" for i in range(len(shards))]
    for name, state in zip(names, shards, strict=True):
        torch.save(state, folder / name)
    return folder


def forward(sizes, shards, tokens):
    """Logits [T, V] of one sequence, rank by rank as the original runs it, in the dtype of the shards."""
    s, ranks = sizes, len(shards)
    heads, kv_heads, h = s.n_heads // ranks, s.n_kv_heads // ranks, s.head_dim
    angles = torch.arange(len(tokens))[:, None] * s.rope_theta ** (-torch.arange(0, h, 2) / h)
    turn = torch.polar(torch.ones_like(angles), angles)

    def rms(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + s.norm_eps) * weight

    def rotate(x):  # [T, heads, h], pairs (2i, 2i + 1) as complex numbers
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn[:, None]).flatten(-2)

    def attention(x, i):
        out = 0
        for state in shards:
            at = f"layers.{i}.attention."
            q = (x @ state[at + "wq.weight"].T).view(-1, heads, h)
            k = (x @ state[at + "wk.weight"].T).view(-1, kv_heads, h)
            v = (x @ state[at + "wv.weight"].T).view(-1, kv_heads, h)
            q = F.layer_norm(q, (h,), state[at + "q_normalization.weight"], state[at + "q_normalization.bias"])
            k = F.layer_norm(k, (h,), state[at + "k_normalization.weight"], state[at + "k_normalization.bias"])
            q, k = rotate(q), rotate(k)
            k, v = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (k, v))
            mixed = F.scaled_dot_product_attention(*(y.transpose(0, 1)[None] for y in (q, k, v)), is_causal=True)
            out = out + mixed[0].transpose(0, 1).flatten(1) @ state[at + "wo.weight"].T
        return out

    def feed_forward(x, i):
        out = 0
        for state in shards:
            at = f"layers.{i}.feed_forward."
            hidden = F.silu(x @ state[at + "w1.weight"].T) * (x @ state[at + "w3.weight"].T)
            out = out + hidden @ state[at + "w2.weight"].T
        return out

    x = torch.cat([state["tok_embeddings.weight"][tokens] for state in shards], dim=-1)
    for i in range(s.n_layers):
        norms = [shards[0][f"layers.{i}.{name}.weight"] for name in ("attention_norm", "ffn_norm")]
        for branch, norm in zip((attention, feed_forward), norms, strict=True):
            x = x + (rms(branch(x, i), norm) if s.swin else branch(rms(x, norm), i))
    x = rms(x, shards[0]["norm.weight"])
    return torch.cat([x @ state["output.weight"].T for state in shards], dim=-1)
