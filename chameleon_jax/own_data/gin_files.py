"""The gin files of a run on somebody's own data, with the reason of every number beside it, and the commands that use them."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from chameleon_jax.data.sources import printable
from chameleon_jax.errors import WorkdirError
from chameleon_jax.files import atomic_write
from chameleon_jax.own_data import earlier
from chameleon_jax.own_data.sizes import LOSS_CHUNK, RESERVED, Sizes
from chameleon_jax.own_data.survey import Survey
from chameleon_jax.progress import format_seconds

# Siblings as those in gin_configs/runs, so that each command can tell the next one (`summary.following`).
TOKENIZER, DATA, RUN = "run_tokenizer.gin", "run_tokenize.gin", "run.gin"
STORE = "store/train"
# Gin file and workdir of each command, in order.
_MADE_BY = {"train_tokenizer": (TOKENIZER, "tokenizer"), "tokenize": (DATA, STORE), "pretrain": (RUN, "model")}
_BASE = "python -m experiments."


def write(folder: Path, files: dict[str, str], *, overwrite: bool) -> bool:
    """Write the files; False where all of them lie there as they are. A file that nobody has edited is replaced.

    Raises WorkdirError, before any is written, where one was edited, or would change under what was trained with it.
    """
    there = {name: (folder / name).read_text(encoding="utf-8") for name in files if (folder / name).exists()}
    changed = [name for name, text in there.items() if text != files[name]]
    if changed and (held := trained(folder)):
        raise WorkdirError(
            f"{folder / changed[0]} would change, and {held[0]} holds what was trained before, which could not go on: choose "
            "another --workdir"
        )
    edited = [name for name in changed if not earlier.is_untouched(folder, name, there[name])]
    if edited and not overwrite:
        raise WorkdirError(
            f"{folder / edited[0]} is there and says something else: it may have been edited; choose another --workdir, or "
            "--overwrite"
        )
    if there == files:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            atomic_write(folder / name, text)
    except OSError as error:
        raise WorkdirError(f"{folder} cannot be written ({error.strerror}): choose another --workdir") from error
    return True


def trained(folder: Path) -> list[Path]:
    """The folders of what was trained with the files."""
    return [folder / part for part in ("tokenizer", "model") if any((folder / part).glob("*"))]


def comment(text: str) -> str:
    """Text of the data as it may stand behind `#`: a line break in the name of a file would begin a statement of gin."""
    return printable(" ".join(text.split()))


def make(found: Survey, sizes: Sizes, folder: Path) -> dict[str, str]:
    """The text of each file by its name."""
    return {
        TOKENIZER: _tokenizer(found, sizes),
        DATA: _data(found, sizes, folder),
        RUN: _run(found, sizes, folder),
    }


def command(name: str, folder: Path) -> str:
    """What is typed to run the command of one of the gin files."""
    gin_file, workdir = (shlex.quote(str(folder / part)) for part in _MADE_BY[name])
    return f"{_BASE}{name} --gin_file={gin_file} --workdir={workdir}"


def commands(found: Survey, folder: Path) -> list[tuple[str, str]]:
    """(name, what is typed) of every command from the data to a server."""
    where = {part: shlex.quote(str(folder / part)) for part in ("model", "out")}
    words = [printable(word) for word in found.caption.split()]
    # A text is to be continued, so its beginning is the prompt; a picture is drawn of a whole caption.
    prompt = shlex.quote(" ".join(words[:12] if found.pictures else words[: max(1, min(12, len(words) // 3))]))
    mode = "image" if found.pictures else "text"
    return [
        *((name, command(name, folder)) for name in _MADE_BY),
        (
            "generate",
            f"{_BASE}generate --workdir={where['model']} --prompt={prompt} --mode={mode} --out={where['out']}",
        ),
        ("serve", f"{_BASE}serve --workdir={where['model']}"),
    ]


def _source(found: Survey) -> str:
    source = found.source
    more = [("split", source.split), ("media_dir", source.media_dir), ("caption", source.caption)]
    lines = [
        f"SourceConfig.name = {source.name!r}",
        f"SourceConfig.kind = {source.kind!r}",
        f"SourceConfig.path = {source.path!r}",
        *(f"SourceConfig.{field} = {value!r}" for field, value in more if value),
    ]
    return "\n".join(lines)


def _tokenizer(found: Survey, sizes: Sizes) -> str:
    text = f"""\
# Tokenizer of {comment(found.source.path)}, about {format_seconds(sizes.seconds["train_tokenizer"])}.
TrainTokenizerConfig.sources = [@SourceConfig()]
{_source(found)}
"""
    vq = sizes.vq
    words = (
        f"{found.vocabulary:,} different words were found; training makes at most so many pieces, 256 bytes among them"
    )
    if vq is None:
        return f"""{text}
# Text alone: a table of modalities with one row.
TrainTokenizerConfig.vocab = @VocabConfig()
VocabConfig.modalities = [@ModalityConfig()]
VocabConfig.reserved = {RESERVED}
ModalityConfig.name = 'text'
ModalityConfig.span = 'free'
ModalityConfig.codec = 'bpe'
ModalityConfig.may_cut = True
ModalityConfig.ids = {sizes.text_tokens}  # {words}
"""
    seen = sizes.codec_steps * sizes.codec_batch
    uses = found.all_pictures * vq.codes_per_image / vq.codes
    return f"""{text}
TrainTokenizerConfig.vocab = @text_and_image()
text_and_image.image_codes = {vq.codes}  # the codebook: the data use each entry about {uses:,.0f} times
text_and_image.codes_per_image = {vq.codes_per_image}  # {vq.grid} x {vq.grid}; what a picture costs of the context
text_and_image.reserved = {RESERVED}
text_and_image.text_tokens = {sizes.text_tokens}  # {words}

# Pictures have a short side of {found.side} pixels in the median; they are scaled to this square. Larger ones cost time.
TrainTokenizerConfig.image = @ImageConfig()
ImageConfig.resolution = {vq.resolution}

# One net on the grid of codes: patches of {vq.patch_size}x{vq.patch_size} pixels go in and come out, which is quick.
TrainTokenizerConfig.vq = @VQConfig()
VQConfig.resolution = {vq.resolution}
VQConfig.patch_size = {vq.patch_size}
VQConfig.channels = {vq.channels}
VQConfig.channel_multipliers = {vq.channel_multipliers}
VQConfig.res_blocks = {vq.res_blocks}
VQConfig.latent_channels = {vq.latent_channels}
VQConfig.embed_dim = {vq.embed_dim}
VQConfig.codes = {vq.codes}
VQConfig.norm_groups = {vq.norm_groups}

# {seen:,} pictures in all, {seen / max(found.all_pictures, 1):.3g} passes over the data.
TrainTokenizerConfig.vq_train = @VQTrainConfig()
VQTrainConfig.steps = {sizes.codec_steps}
VQTrainConfig.batch_size = {sizes.codec_batch}
VQTrainConfig.learning_rate = {3e-3 if vq.grid == 4 else 1e-3}
VQTrainConfig.warmup_steps = {max(1, min(100, sizes.codec_steps // 10))}
VQTrainConfig.l1_weight = 0.2
VQTrainConfig.l2_weight = 1.0
VQTrainConfig.dead_code_steps = {max(10, min(100, sizes.codec_steps // 10))}
VQTrainConfig.eval_every = {max(50, sizes.codec_steps // 4)}
"""


def _data(found: Survey, sizes: Sizes, folder: Path) -> str:
    text = f"""\
# {comment(found.source.path)} to tokens, about {format_seconds(sizes.seconds["tokenize"])}.
TokenizeConfig.sources = [@SourceConfig()]
{_source(found)}

TokenizeConfig.tokenizer = {str(folder / "tokenizer")!r}
TokenizeConfig.codec_batch = {256 if sizes.vq and sizes.vq.grid == 4 else 64}
"""
    if found.rejects:
        share = min(1.0, math.ceil(found.reject_fraction * 100 + 1) / 100)
        text += f"# {len(found.rejects):,} of {found.read:,} records cannot be used: {comment(found.reasons()[0][1])}\n"
        text += f"TokenizeConfig.max_reject_fraction = {share}  # more end the run\n"
    if found.most_pictures > 64:
        text += f"TokenizeConfig.max_spans = {{'image': {found.most_pictures}}}  # pictures of a document\n"
    return text


def _run(found: Survey, sizes: Sizes, folder: Path) -> str:
    model = sizes.model
    weights = (
        f"LossConfig.weights = {{'image': {sizes.picture_weight}}}  # a picture has many more tokens than its words\n"
        if sizes.vq and sizes.picture_weight < 1
        else ""
    )
    time = format_seconds(sizes.seconds["pretrain"])
    return f"""\
# A transformer of {sizes.parameters:,} parameters on {found.all_documents:,} documents, about {time}.
PretrainConfig.model = @TransformerConfig()
PretrainConfig.data = @DataConfig()
PretrainConfig.train = @TrainConfig()
PretrainConfig.optim = @OptimConfig()
PretrainConfig.loss = @LossConfig()
PretrainConfig.checkpoint = @CheckpointConfig()

DataConfig.stores = [@StoreConfig()]
StoreConfig.path = {str(folder / STORE)!r}
DataConfig.seq_len = {sizes.seq_len}  # a row: the longest document, or three of the usual length

# The largest that {found.all_documents:,} documents and {sizes.minutes:g} minutes can teach. vocab_size follows the token store.
TransformerConfig.d_model = {model.d_model}
TransformerConfig.n_layers = {model.n_layers}
TransformerConfig.n_heads = {model.n_heads}
TransformerConfig.n_kv_heads = {model.n_kv_heads}
TransformerConfig.head_dim = {model.head_dim}
TransformerConfig.d_ff = {model.d_ff}
TransformerConfig.max_seq_len = {model.max_seq_len}  # the context of generating too
TransformerConfig.rope_theta = {model.rope_theta}
TransformerConfig.init_std = {model.init_std}
TransformerConfig.compute_dtype = {model.compute_dtype!r}
TransformerConfig.scan_unroll = {model.scan_unroll}

TrainConfig.steps = {sizes.steps}  # {sizes.epochs:.3g} passes over the data
TrainConfig.batch_size = {sizes.batch_size}  # rows of a step
TrainConfig.microbatches = {sizes.microbatches}
TrainConfig.log_every = {max(1, sizes.steps // 20)}
{weights}LossConfig.chunk = {LOSS_CHUNK}
OptimConfig.learning_rate = {sizes.learning_rate}
OptimConfig.schedule = 'cosine'
OptimConfig.eps = 1e-8
CheckpointConfig.every_steps = {max(20, math.ceil(sizes.steps / 4))}
"""
