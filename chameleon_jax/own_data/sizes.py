"""Sizes of codec, text pieces and transformer for given data, machine and time, and how long each command will take.

The rules are those of the runs in gin_configs/runs, made into formulas. They are a start that works, not a search: every number is
written to a gin file with its reason, to be changed there.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

import jax

from chameleon_jax.configs import (
    DataConfig,
    LossConfig,
    ModalityConfig,
    PretrainConfig,
    StoreConfig,
    TrainConfig,
    TransformerConfig,
    VocabConfig,
    VQConfig,
    text_and_image,
)
from chameleon_jax.models import params, transformer
from chameleon_jax.own_data.machine import Machine
from chameleon_jax.own_data.survey import Survey
from chameleon_jax.parallel.mesh import make_mesh
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.training.memory import estimate
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe
from chameleon_jax.vocab import Vocab

RESERVED, LOSS_CHUNK = 16, 1024
# Resolution -> codes along a side.
_GRIDS = {8: 4, 16: 4, 32: 8, 64: 8, 128: 8, 256: 16, 512: 32}
# Width, layers and heads of a transformer.
_MODELS = (
    (64, 4, 4), (96, 4, 4), (128, 4, 4), (192, 6, 6), (256, 6, 8), (384, 8, 6), (512, 8, 8), (768, 12, 12), (1024, 16, 16),
    (1536, 24, 12), (2048, 24, 16),
)  # fmt: skip
_PICTURES_PER_CODE = 1000  # that a codec sees for each code of a picture, as in the runs of digits and emoji
_CODEC_EPOCHS, _EPOCHS = 300, 100  # at most
_TOKENS_PER_PARAMETER = 8
_PASSES_OF_SIZE = 40  # a model is no larger than what so many passes over the data can teach
_CODEC_TIME, _MODEL_TIME = 0.35, 0.6  # shares of the time that is left after starting and compiling

# On a free core: seconds of a command before its first step, and what of the rate of products alone a whole step reaches, fitted to
# the runs of the digits and the emoji (benchmarks/own_data.py compares).
STARTING = {"train_tokenizer": 20.0, "tokenize": 9.0, "pretrain": 28.0}
_CODEC_SHARE, _MODEL_SHARE = 0.5, 0.45
_STEP_SECONDS = 0.0025
_BPE_CHARACTERS_PER_SECOND = 2e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the gin files say. `vq` is None without pictures; `seconds` are by command."""

    minutes: float
    vq: VQConfig | None
    codec_steps: int
    codec_batch: int
    text_tokens: int
    model: TransformerConfig
    parameters: int
    seq_len: int
    batch_size: int
    microbatches: int
    memory: int  # bytes of a step of pretraining on a device
    steps: int
    epochs: float
    learning_rate: float
    picture_weight: float
    seconds: dict[str, float]

    @property
    def codes_per_image(self) -> int:
        return self.vq.codes_per_image if self.vq else 0


def choose(found: Survey, machine: Machine, minutes: float) -> Sizes:
    """Sizes for a run of about so many minutes in all on this machine."""
    starting = {name: seconds * machine.load for name, seconds in STARTING.items()}
    work = max(60 * minutes - sum(starting.values()), 15 * minutes)
    vq, codec_steps, codec_batch = _codec(found, machine, work * _CODEC_TIME) if found.pictures else (None, 0, 0)
    text_tokens = _text_tokens(found, machine)
    codes = vq.codes_per_image + 2 if vq else 0
    words = [1.5 * count + 2 for count in found.words] or [2.0]
    pictures = found.pictures / max(found.documents, 1)
    document = pictures * codes + statistics.fmean(words)
    longest = found.most_pictures * codes + sorted(words)[int(0.99 * (len(words) - 1))] + 8
    seq_len = _multiple(min(max(longest, 3 * document, 64), 4096), 16)
    epoch = found.all_documents * document
    most = 8192 if machine.is_cpu else 65536
    batch_size = max(2, round(min(max(epoch / 800, 512), most) / seq_len))
    batch_size = _multiple(batch_size, machine.devices)
    vocab = vocab_config(vq, text_tokens)
    model = _model(machine, Vocab.from_config(vocab).size, seq_len, epoch, work * _MODEL_TIME, batch_size)
    memory, microbatches = _memory(vocab, model, seq_len, batch_size, machine)
    seconds = step_seconds(model, seq_len, batch_size, machine)
    tokens = batch_size * seq_len
    steps = max(20, min(int(work * _MODEL_TIME / seconds), math.ceil(_EPOCHS * epoch / tokens)))
    spent = {
        "train_tokenizer": starting["train_tokenizer"] + found.seconds * found.scale
        + found.characters * found.scale / _BPE_CHARACTERS_PER_SECOND
        + (codec_steps * codec_step_seconds(vq, codec_batch, machine) if vq else 0),
        "tokenize": starting["tokenize"] + found.seconds * found.scale
        + (found.all_pictures * codec_step_seconds(vq, 1, machine) / 6 if vq else 0),
        "pretrain": starting["pretrain"] + steps * seconds,
    }  # fmt: skip
    return Sizes(
        minutes=minutes,
        vq=vq,
        codec_steps=codec_steps,
        codec_batch=codec_batch,
        text_tokens=text_tokens,
        model=model,
        parameters=_count(model),
        seq_len=seq_len,
        batch_size=batch_size,
        microbatches=microbatches,
        memory=memory,
        steps=steps,
        epochs=steps * tokens / max(epoch, 1),
        learning_rate=_rounded(min(3e-3, 3e-3 * (128 / model.d_model) ** 0.8)),
        picture_weight=_rounded(min(1.0, max(0.1, 1.5 * statistics.fmean(words) / (pictures * codes)))) if vq else 1.0,
        seconds=spent,
    )


def codec_step_seconds(vq: VQConfig, batch: int, machine: Machine) -> float:
    """Of one step of training on so many pictures: forward and backward through convolutions on the grid of codes."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(_codec_shapes(vq))) - vq.codes * vq.embed_dim
    products = 6 * parameters + 2 * vq.codes * vq.embed_dim
    rate = machine.rate(vq.channels) * _CODEC_SHARE * machine.devices
    return products * vq.codes_per_image * batch / rate + (_STEP_SECONDS if batch > 1 else 0)


def step_seconds(model: TransformerConfig, seq_len: int, batch: int, machine: Machine) -> float:
    """Of one step of pretraining on so many rows."""
    flops = transformer.flops_per_token(model, seq_len) * seq_len * batch
    return flops / (machine.rate(model.d_model) * _MODEL_SHARE * machine.devices) + _STEP_SECONDS * model.n_layers


def _codec(found: Survey, machine: Machine, seconds: float) -> tuple[VQConfig, int, int]:
    """The largest resolution that the pictures have and the time can teach, with steps and batch size."""
    fitting = resolutions(found)
    for side in reversed(fitting):
        vq = vq_config(side, found.all_pictures, machine)
        batch = 32 if side <= 16 else 16
        seen = min(_PICTURES_PER_CODE * vq.codes_per_image, _CODEC_EPOCHS * found.all_pictures)
        needed = max(seen / batch, 60) * codec_step_seconds(vq, batch, machine)
        if needed <= seconds or side == fitting[0]:
            break
    steps = int(max(60, min(seen / batch, seconds / codec_step_seconds(vq, batch, machine))))
    return vq, steps, batch


def resolutions(found: Survey) -> list[int]:
    """Sides of the squares that the pictures fill, rising; the smallest there is for smaller ones."""
    return [side for side in _GRIDS if side <= max(found.side, min(_GRIDS))]


def vq_config(side: int, pictures: int, machine: Machine) -> VQConfig:
    """A codec for pictures of this side: patches of pixels into one net on the grid of codes, what a CPU does best."""
    grid = _GRIDS[side]
    channels = 32 if grid == 4 else 128 if machine.is_cpu else 256
    codes = 2 ** round(math.log2(max(pictures * grid**2 / 700, 1)))
    return VQConfig(
        resolution=side,
        patch_size=side // grid,
        channels=channels,
        channel_multipliers=(1,),
        res_blocks=1,
        latent_channels=channels,
        embed_dim=8 if grid == 4 else 16,
        codes=min(max(codes, 32), 2048 if machine.is_cpu else 8192),
        norm_groups=4 if grid == 4 else 8,
    )


def _model(machine: Machine, vocab: int, seq_len: int, epoch: float, seconds: float, batch: int) -> TransformerConfig:
    """The largest transformer that data and time can teach."""
    chosen = None
    for width, layers, heads in _MODELS:
        model = model_config(width, layers, heads, vocab, seq_len, machine)
        parameters = _count(model)
        tokens = _TOKENS_PER_PARAMETER * parameters
        needed = tokens / (batch * seq_len) * step_seconds(model, seq_len, batch, machine)
        # Parameters, moments, gradients and updates are 24 bytes; as much again is left for activations.
        fits = machine.memory is None or 48 * parameters < machine.memory
        if chosen is None or (tokens <= _PASSES_OF_SIZE * epoch and needed <= seconds and fits):
            chosen = model
    return chosen


def vocab_config(vq: VQConfig | None, text_tokens: int) -> VocabConfig:
    """Text, and pictures where there are any."""
    if vq is None:
        text = ModalityConfig(name="text", ids=text_tokens, span="free", codec="bpe", may_cut=True)
        return VocabConfig(modalities=(text,), reserved=RESERVED)
    sizes = {"image_codes": vq.codes, "codes_per_image": vq.codes_per_image, "text_tokens": text_tokens}
    return text_and_image(**sizes, reserved=RESERVED)


def _memory(
    vocab: VocabConfig, model: TransformerConfig, seq_len: int, batch: int, machine: Machine
) -> tuple[int, int]:
    """Bytes of a step, and the fewest microbatches with which it takes at most two thirds of a device."""
    microbatches = 1
    while True:
        config = PretrainConfig(
            model=model,
            data=DataConfig(stores=(StoreConfig(path="store"),), seq_len=seq_len),
            train=TrainConfig(steps=1, batch_size=batch, microbatches=microbatches),
            loss=LossConfig(chunk=LOSS_CHUNK),
        )
        recipe = Recipe.of(PretrainTask(config=config, vocab=vocab), config)
        needed = estimate(recipe, make_mesh(config.mesh)).total
        left = batch // microbatches // machine.devices
        if machine.memory is None or needed < machine.memory * 2 / 3 or left < 2 or left % 2:
            return needed, microbatches
        microbatches *= 2


def model_config(width: int, layers: int, heads: int, vocab: int, seq_len: int, machine: Machine) -> TransformerConfig:
    """A transformer of these sizes, as the short rows of small runs want it."""
    return TransformerConfig(
        vocab_size=_multiple(vocab, 128),
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=width // heads,
        d_ff=_multiple(width * 8 / 3, 8),
        max_seq_len=seq_len,
        rope_theta=500.0 if seq_len <= 512 else 10000.0,
        init_std=0.05 if width <= 256 else 0.02,
        compute_dtype="float32" if machine.is_cpu else "bfloat16",
        scan_unroll=layers if layers <= 4 and machine.is_cpu else 1,
    )


def _text_tokens(found: Survey, machine: Machine) -> int:
    most = 8192 if machine.is_cpu else 32768
    return min(max(_multiple(256 + 2 * found.vocabulary, 64), 320), most)


def _codec_shapes(vq: VQConfig) -> dict:
    return jax.eval_shape(lambda: vqgan.init(jax.random.key(0), vq))


def _count(model: TransformerConfig) -> int:
    return params.count(transformer.param_specs(model))


def _multiple(value: float, of: int) -> int:
    return math.ceil(value / of) * of


def _rounded(value: float) -> float:
    """Two figures, as a person would write it."""
    return float(f"{value:.2g}")
