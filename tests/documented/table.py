"""All that differs between a documented command and the one that the tests run: what is smaller, given, or cannot run here.

A command that matches no row of ROWS, and a block of a page that no table names, fail `test_pages.py`, which says what to add.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Literal

from tests.documented import given
from tests.documented.given import Of

# Pages that are read one after the other in one process; each file of tests follows one list.
STORIES = {
    "digits": (
        "README.md", "docs/install.md", "experiments/quickstart.py", "docs/own_data.md", "experiments/new.py",
        "experiments/digits.py", "docs/tokenize.md", "docs/pretrain.md", "experiments/pretrain.py", "docs/distributed.md",
        "docs/architecture.md", "docs/performance.md", "docs/compile_only.md", "experiments/compile_only.py",
    ),
    "emoji": (
        "experiments/emoji.py", "docs/emoji.md", "experiments/train_tokenizer.py", "experiments/tokenize.py",
        "experiments/evaluate.py", "experiments/inspect.py", "docs/untied.md", "docs/serve.md", "experiments/serve.py",
    ),
    "modalities": (
        "docs/convert.md", "experiments/convert.py", "experiments/extend_tokenizer.py", "docs/three_modalities.md",
        "experiments/three_modalities.py", "experiments/digit_pairs.py", "experiments/spoken_digits.py",
        "experiments/actions.py", "experiments/grid_world.py", "docs/modalities.md", "docs/perception.md",
        "docs/generate.md", "experiments/generate.py",
    ),
}  # fmt: skip

# The gin files that the commands of a story must have run, by shell patterns.
GIN_FILES = {
    "digits": (
        "gin_configs/base.gin",
        "gin_configs/models/*.gin",
        "gin_configs/runs/digits*.gin",
        "gin_configs/runs/smoke.gin",
    ),
    "emoji": ("gin_configs/runs/emoji*.gin",),
    "modalities": ("gin_configs/runs/three_modalities*.gin", "gin_configs/runs/actions*.gin"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """How commands that match `command` are run.

    `command` is a regular expression for the beginning of "NAME FLAGS" (of "PROGRAM ARGUMENTS" where it is none of ours). `add` are
    flags behind those of the page, of two the last counts; `drop` is a flag of the page that is left out. `run`: in the reader's
    process, in one of its own with `environment`, as the server of the pages that follow, or not at all, for the `reason`.
    """

    command: str
    add: str = ""
    drop: str = ""
    run: Literal["here", "process", "server", "not"] = "here"
    reason: str = ""
    typed: str = ""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def drops(self, argument: str) -> bool:
        return bool(self.drop) and re.fullmatch(self.drop, argument) is not None


_DEVICES = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
}
# A seed is a constant of the compiled programs: another would compile them anew.
_SEED = " --gin.SEED=0"
_SERVE = "--port={port} --slots=2"
_CODEC = "--gin.VQTrainConfig.steps=2 --gin.VQTrainConfig.warmup_steps=1 --gin.VQTrainConfig.eval_every=2"
_TRAIN = (
    "--gin.TrainConfig.steps=2 --gin.TrainConfig.log_every=1 --gin.TrainConfig.eval_every=2 --gin.TrainConfig.eval_batches=1"
    " --gin.TrainConfig.batch_size=4 --gin.OptimConfig.warmup_steps=1 --gin.CheckpointConfig.every_steps=1"
)
_TINY = " ".join(
    f"--gin.TransformerConfig.{size}"
    for size in ("d_model=16", "n_layers=1", "n_heads=8", "n_kv_heads=4", "head_dim=8", "d_ff=16", "max_seq_len=96")
)
_SHALLOW = " --gin.TransformerConfig.n_layers=1 --gin.TransformerConfig.scan_unroll=1"

# The first row that matches counts.
ROWS = (
    Row("(NAME|COMMAND)\\b", run="not", reason="the form of a command"),
    Row("(three_modalities|actions)$", run="not", reason="named in a sentence, without its flags"),
    Row("python benchmarks/", run="not", reason="a measurement that takes minutes"),
    Row("python -m pytest", run="not", reason="these tests"),
    Row("python3 -m venv", run="not", reason="the environment of the tests is used"),
    Row("pip install", run="not", reason="the environment of the tests is used; tests/test_notebooks.py installs"),
    Row("gcloud ", run="not", reason="needs a TPU pod; docs/distributed.md runs two processes by hand"),
    Row("srun ", run="not", reason="needs Slurm; docs/distributed.md runs two processes by hand"),
    Row("python -c", run="process"),
    Row("--help"),
    Row("(quickstart|three_modalities|actions) "),  # their commands are in this table
    Row("(digits|digit_pairs|spoken_digits|grid_world|emoji|extend_tokenizer) "),
    Row("evaluate ", "--gin.CaptionEvalConfig.pictures=6 --gin.CaptionEvalConfig.choices=2"),
    Row("new "),
    Row(
        "train_tokenizer .*three_modalities_tokenizer",
        f"{_CODEC} --gin.SoundTrainConfig.steps=2 --gin.SoundTrainConfig.warmup_steps=1 --gin.SoundConfig.channels=16"
        f" --gin.SoundConfig.phase_steps=2{_SEED}",
    ),
    Row(
        "train_tokenizer .*emoji_tokenizer",
        f"{_CODEC} --gin.VQConfig.channels=16 --gin.VQConfig.latent_channels=16 --gin.VQTrainConfig.batch_size=4",
    ),
    Row("train_tokenizer .*--gin.SEED", _CODEC + _SEED),
    Row("train_tokenizer ", _CODEC),
    Row("tokenize "),
    Row("pretrain .*--coordinator=localhost", _TRAIN + " --gin.TrainConfig.batch_size=8", run="process"),
    Row("pretrain .*--rollback_to", f"{_TRAIN}{_SHALLOW} --rollback_to=1 --skip_batches=1"),
    Row(
        "pretrain .*--process_id=0",
        run="not",
        reason="HOST stands for a machine; docs/distributed.md runs two processes",
    ),
    Row("pretrain .*--distributed", run="not", reason="needs a pod or Slurm; docs/distributed.md runs two processes"),
    Row("pretrain .*runs/smoke", _TRAIN),
    Row("pretrain .*gin_configs/models/", f"{_TRAIN} {_TINY} --gin.TransformerConfig.vocab_size=512"),
    Row(
        "pretrain .*runs/emoji",
        f"{_TRAIN}{_SHALLOW} --gin.TransformerConfig.d_model=32 --gin.TransformerConfig.d_ff=32 --gin.TrainConfig.seed=0"
        " --gin.DataConfig.seed=0",
    ),
    Row("pretrain .*--gin.SEED", _TRAIN + _SHALLOW + _SEED),
    Row("pretrain ", _TRAIN + _SHALLOW),
    Row("convert .*--preset", drop="--preset|chameleon-7b"),
    Row("convert .*--resolution", "--resolution=64"),
    Row("convert "),
    Row("generate .*--chat", add="--max_tokens=40", typed="a red heart\n/seed 3\nagain\n/reset\n"),
    Row("generate .*--image_size", "--image_size=24x16 --max_tokens=40"),
    Row("generate ", "--max_tokens=40"),
    Row("serve .*--mesh=tensor=8", _SERVE, run="server", environment=_DEVICES),
    Row("serve ", _SERVE, run="server"),
    Row("inspect "),
    Row(
        "compile_only .*--topology=v",
        run="not",
        reason="needs libtpu; tests/compile_report/test_tpu.py compiles where it is installed",
    ),
    Row("compile_only "),
)

# Sizes that no flag sets.
CONSTANTS = {
    "chameleon_jax.demo.digits:COPIES": 1,
    "chameleon_jax.demo.digits:HELD_OUT_EVERY": 20,
    "chameleon_jax.demo.judge:DRAWN_OF_EACH": 1,
    "chameleon_jax.demo.prepare:STEPS": 10,
    "chameleon_jax.demo.spoken_digits:VOICES": ("m1", "f2"),
    "chameleon_jax.demo.spoken_digits:HELD_OUT_VOICES": ("f4",),
    "chameleon_jax.demo.spoken_digits:load.takes": 5,
    "chameleon_jax.demo.spoken_digits:write.takes": 5,
    "chameleon_jax.demo.digit_pairs:TAKES": 5,
    "chameleon_jax.demo.digit_pairs:write.documents": {"train": 300, "heldout": 60},
    "chameleon_jax.demo.directions:MARGINAL": 1,
    "chameleon_jax.demo.directions:examine.queries": 2,  # the page draws a second answer to a word
    "chameleon_jax.demo.grid_world:write.train": 200,
    "chameleon_jax.demo.grid_world:write.heldout": 20,
    "chameleon_jax.demo.policy:examine.count": 20,
}


def words(program: str, argv: list[str]) -> str:
    """The command as rows match it: "NAME FLAGS" of ours in all of its forms, else "PROGRAM ARGUMENTS"."""
    if program == "chameleon" or argv[:2] == ["-m", "chameleon_jax"]:
        return shlex.join(argv if program == "chameleon" else argv[2:])
    if program == "python" and argv[:1] == ["-m"] and argv[1].startswith("experiments."):
        return shlex.join([argv[1].removeprefix("experiments."), *argv[2:]])
    return shlex.join([program, *argv])


def reduced(program: str, argv: list[str]) -> Row:
    """The row of a command. Raises LookupError, with what to add, where there is none."""
    command = words(program, argv)
    for row in ROWS:
        if re.match(row.command, command):
            return row
    raise LookupError(f"no row of tests/documented/table.py matches this command; add how it is made small: {command}")


_MY_STORE = "TokenizeConfig.tokenizer = 'runs/mine/tokenizer'\n"
_SMALL_MODEL = """
TransformerConfig.d_model = 16
TransformerConfig.n_layers = 1
TransformerConfig.n_heads = 2
TransformerConfig.n_kv_heads = 2
TransformerConfig.head_dim = 8
TransformerConfig.d_ff = 16
TransformerConfig.max_seq_len = 96
DataConfig.seq_len = 96
TransformerConfig.compute_dtype = 'float32'
"""
_STORES = "DataConfig.stores = [@StoreConfig()]\nStoreConfig.path = 'runs/mine/store/web'\nDataConfig.seq_len = 96\n"
_MY_RUN = f"""
include 'gin_configs/base.gin'
DataConfig.stores = [@StoreConfig()]
StoreConfig.path = 'runs/mine/store'
{_SMALL_MODEL}"""
_CATS = given.fragment("docs/tokenize.md", "TrainTokenizerConfig.sources")
_RUN_FILE = given.fragment("docs/pretrain.md", "include 'gin_configs/base.gin'")
# The sizes of the model that `given.model` makes, in place of those of the page's run file.
_SMALLER_RUN = f"{_RUN_FILE}{_SMALL_MODEL}MeshConfig.tensor = 1\nTrainConfig.microbatches = 1\n"

_SOUNDS = """
TrainTokenizerConfig.sound = @SoundConfig()
SoundConfig.seconds = 0.64
SoundConfig.hop = 80
SoundConfig.frames_per_code = 2
SoundConfig.codes = 256
SoundConfig.channels = 16
SoundConfig.phase_steps = 2
TrainTokenizerConfig.sound_train = @SoundTrainConfig()
SoundTrainConfig.steps = 2
SoundTrainConfig.warmup_steps = 1
SoundTrainConfig.batch_size = 4
"""


def _made() -> str:
    return given.sources("TrainTokenizerConfig", "made/manifest.jsonl", "jsonl")


def _pictures(resolution: int, codes: int) -> str:
    """Gin lines of a small codec of pictures, 2 x 2 pixels a code, without those of the table."""
    lines = [line for line in given.SMALL_TOKENIZER.splitlines() if "text_and_image" not in line]
    text = "\n".join(lines) + "\n"
    return text.replace("resolution = 8", f"resolution = {resolution}").replace(
        "VQConfig.codes = 16", f"VQConfig.codes = {codes}"
    )


def _without(text: str, root: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(root))


# What the reader of a page has before its first line.
GIVEN: dict[str, dict[str, given.Maker | Of]] = {
    "README.md": {
        ".venv/bin/activate": given.text(""),
        "data": given.release("7b"),
        "runs/chameleon-34b": given.converted("34b"),
        "photos": given.data("csv"),
        "my_tokenizer.gin": given.text(given.sources("TrainTokenizerConfig") + given.SMALL_TOKENIZER),
        "my_data.gin": given.text(given.sources("TokenizeConfig") + _MY_STORE),
        "my_run.gin": given.text(_MY_RUN),
        "my_evaluation.gin": given.text(given.sources("CaptionEvalConfig") + "CaptionEvalConfig.pictures = 40\n"),
    },
    "docs/install.md": {"runs/quickstart": Of("README.md")},
    "experiments/quickstart.py": {"runs/quickstart": Of("README.md")},
    "docs/own_data.md": {"photos": given.data("pairs")},
    "experiments/new.py": {"photos": given.data("csv"), "shards": given.data("tars"), "icons": given.pictures_alone},
    "docs/tokenize.md": {
        "gin_configs/runs/my_tokenizer.gin": given.text(_without(_CATS, "TokenizeConfig") + given.SMALL_TOKENIZER),
        "gin_configs/runs/my_tokenize.gin": given.text(_without(_CATS, "TrainTokenizerConfig")),
        "data/cats": given.data("manifest"),
        **{f"schemas/folder/png/{name}.png": given.picture() for name in ("1f600", "a")},
        **{f"schemas/lines/{name}.jpg": given.picture() for name in "ab"},
        "schemas/table/png/a.png": given.picture(),
    },
    "docs/pretrain.md": {
        "runs/smoke/data": Of("experiments/digits.py"),
        "my_run.gin": given.text(_SMALLER_RUN),
        "stores.gin": given.text(_STORES),
        "runs/mine/store": given.stores("web", "good", "held_out"),
        "runs/chameleon-7b": given.model,
    },
    "experiments/pretrain.py": {
        "my_run.gin": given.text(_SMALLER_RUN),
        "runs/mine": Of("docs/pretrain.md"),
        "runs/smoke/data": Of("experiments/digits.py"),
        "runs/emoji/store/train": given.store,
    },
    "docs/distributed.md": {"runs/smoke/data": Of("experiments/digits.py")},
    "docs/emoji.md": {"runs/emoji/data/archives": given.emoji_archives},
    "experiments/emoji.py": {"downloads": given.emoji_archives},
    "experiments/train_tokenizer.py": {
        "runs/emoji/data": Of("docs/emoji.md"),
        "photos": given.data("csv"),
        "my.gin": given.text(given.sources("TrainTokenizerConfig") + given.SMALL_TOKENIZER),
    },
    "experiments/tokenize.py": {
        "runs/emoji": Of("docs/emoji.md"),
        "photos": given.data("csv"),
        "runs/mine/tokenizer": given.bundle,
        "my_data.gin": given.text(given.sources("TokenizeConfig") + _MY_STORE),
    },
    "experiments/evaluate.py": {"runs/emoji": Of("docs/emoji.md")},
    "experiments/inspect.py": {
        "runs/emoji": Of("docs/emoji.md"),
        "runs/photos": given.gin_files_of_new,
        "runs/chameleon-34b": given.converted("34b"),
    },
    "docs/untied.md": {"runs/emoji/data/archives": given.emoji_archives},
    "docs/serve.md": {
        "runs/emoji/model": given.model,
        "runs/three/model": given.model,
        "runs/chameleon-34b": given.converted("34b"),
    },
    "experiments/serve.py": {
        "runs/emoji/model": given.model,
        "runs/three/model": given.model,
        "runs/chameleon": given.model,
        "runs/chameleon-34b": given.converted("34b"),
    },
    "docs/convert.md": {"data": given.release("7b")},
    "experiments/convert.py": {
        "data": given.release("7b"),
        "chameleon-7b-hf": given.converted("7b", "hf"),
        "Lumina-mGPT-7B-768": given.converted("lumina", "hf"),
        "vqgan.ckpt": given.codec_file("vqgan.ckpt"),
        "vqgan.yaml": given.codec_file("vqgan.yaml"),
        "runs/emoji/model": given.model,
        "runs/chameleon-34b": given.converted("34b"),
    },
    "experiments/extend_tokenizer.py": {"runs/chameleon-7b": Of("docs/convert.md")},
    "experiments/three_modalities.py": {"runs/three": Of("docs/three_modalities.md")},
    "experiments/actions.py": {"runs/actions": Of("docs/three_modalities.md")},
    "docs/modalities.md": {
        "runs/mine/tokenizer": given.bundle,
        "made": given.three_forms,
        "photos": given.data("csv"),
        "codecs.gin": given.text(_made() + _pictures(8, 32) + _SOUNDS),
        "pictures.gin": given.text(given.sources("TrainTokenizerConfig") + _pictures(16, 512)),
    },
    "docs/generate.md": {
        "runs/emoji/model": given.model,
        "runs/chameleon": given.converted("7b"),
        "runs/lumina": given.converted("lumina"),
        "heart.png": given.picture(),
        "a.png": given.picture(),
        "requests.jsonl": given.text(given.fragment("docs/generate.md", '{"prompt": "a red heart"')),
    },
    "experiments/generate.py": {
        "runs/emoji/model": given.model,
        "runs/three": Of("docs/three_modalities.md"),
        "runs/chameleon": given.converted("7b"),
        "runs/lumina": given.converted("lumina"),
        "heart.png": given.picture(),
        "a.png": given.picture(),
        "b.png": given.picture(),
        "seven.wav": given.sound,
        "requests.jsonl": given.text(given.fragment("docs/generate.md", '{"prompt": "a red heart"')),
    },
}

# Blocks of text that are files: what they are called, and the command that reads them.
USED: dict[tuple[str, str], tuple[str, str]] = {
    ("docs/tokenize.md", '{"id": "1f600"'): (
        "schemas/folder/manifest.jsonl",
        "python -m experiments.inspect schemas/folder --out=folder.html",
    ),
    ("docs/tokenize.md", '{"text": "only text"}'): (
        "schemas/lines/a.jsonl",
        "python -m experiments.inspect schemas/lines/a.jsonl --out=a.html",
    ),
    ("docs/tokenize.md", '{"text_list"'): (
        "schemas/lines/b.jsonl",
        "python -m experiments.inspect schemas/lines/b.jsonl --out=b.html",
    ),
    ("docs/tokenize.md", "file_name,caption"): (
        "schemas/table/captions.csv",
        "python -m experiments.inspect schemas/table/captions.csv --out=captions.html",
    ),
    ("docs/pretrain.md", "PretrainConfig.init_from"): (
        "start.gin",
        "python -m experiments.pretrain --gin_file=my_run.gin --gin_file=start.gin --workdir=runs/started",
    ),
    ("docs/pretrain.md", "TrainConfig.sample_every"): (
        "samples.gin",
        "python -m experiments.pretrain --gin_file=my_run.gin --gin_file=samples.gin --workdir=runs/sampled",
    ),
    ("docs/pretrain.md", "TrainableConfig.parameters"): (
        "part.gin",
        "python -m experiments.pretrain --gin_file=my_run.gin --gin_file=part.gin --workdir=runs/part",
    ),
    ("docs/generate.md", "GenerationConfig.sampling"): (
        "sampling.gin",
        "python -m experiments.generate --gin_file=sampling.gin --workdir=runs/emoji/model --prompt=red --out=sampled",
    ),
    ("docs/modalities.md", "TrainTokenizerConfig.vocab = @VocabConfig"): (
        "table.gin",
        "python -m experiments.train_tokenizer --gin_file=table.gin --gin_file=codecs.gin --workdir=runs/table",
    ),
    ("docs/modalities.md", "TrainTokenizerConfig.vocab = @text_and_image"): (
        "short.gin",
        "python -m experiments.train_tokenizer --gin_file=short.gin --gin_file=pictures.gin --workdir=runs/short",
    ),
}

# Blocks that quote a gin file: every line stands in it.
QUOTED = {
    ("docs/perception.md", "TransformerConfig.perception"): "gin_configs/runs/digits_patches.gin",
    ("docs/three_modalities.md", "VocabConfig.modalities"): "gin_configs/runs/three_modalities_tokenizer.gin",
    ("docs/three_modalities.md", "actions/ModalityConfig.name"): "gin_configs/runs/actions_tokenizer.gin",
    ("docs/untied.md", "TransformerConfig.untied"): "gin_configs/runs/emoji_untied.gin",
}

# Blocks that only show something, with the reason why nothing is run.
SHOWN = {
    ("docs/distributed.md", "error: process 1"): "output",
    ("docs/compile_only.md", "a training step on 64 x v5p"): "output",
    ("docs/own_data.md", "runs/mine/data/train.jsonl: lines of JSON"): "output",
    ("docs/generate.md", '{"prompt": "a red heart"'): "requests.jsonl of GIVEN",
    ("docs/pretrain.md", "include 'gin_configs/base.gin'"): "my_run.gin of GIVEN",
    ("docs/tokenize.md", "TrainTokenizerConfig.sources"): "my_tokenizer.gin and my_tokenize.gin of GIVEN",
    ("docs/tokenize.md", "00000/000000001.jpg"): "names in a tar",
    ("docs/tokenize.md", "image: binary"): "columns of parquet",
    ("docs/tokenize.md", "tfds/SourceConfig.path"): "needs a prepared data set of TFDS; tests/data reads one",
    (
        "docs/perception.md",
        "seen/ModalityConfig.name",
    ): "a row among others; digits_patches_tokenizer.gin makes it by text_and_image",
    ("docs/serve.md", "endpoints:"): "settings of LibreChat; tests/serving has what it sends with them",
    ("docs/serve.md", '{"type": "image_url"'): "an answer; tests/serving has all",
    ("docs/serve.md", '{"messages"'): "a request with a part left open; tests/serving/test_keep.py sends it",
    ("docs/serve.md", '{"token": " heart"'): "an answer; tests/serving/test_logprobs.py has it",
}

# Snippets that need more devices than a reader of these tests has, by page and first line.
DEVICES = {("docs/convert.md", "from chameleon_jax.configs import MeshConfig"): 8}
# Pages on which the commands that `new` prints are run, as the page says; elsewhere those of "next" alone.
PRINTED = ("docs/own_data.md",)
# The server that is up again for a block, where another came between.
SERVERS = {
    ("docs/serve.md", start): "python -m experiments.serve --workdir=runs/emoji/model"
    for start in ("reply = client.responses", "from langchain_core")
}
# What is other in a snippet, by page and first line.
SNIPPETS = {("docs/convert.md", "from pathlib import Path"): {'Options(preset="chameleon-7b")': "Options()"}}
# Files that must be there behind a block.
PROMISED: dict[tuple[str, str], tuple[str, ...]] = {
    ("README.md", "# 1. install"): ("runs/quickstart/quickstart.png", "runs/quickstart/quickstart.json"),
    ("README.md", "python -m experiments.new"): (
        "runs/mine/records.html", "runs/mine/run_tokenizer.gin", "runs/mine/run_tokenize.gin", "runs/mine/run.gin",
    ),
    ("README.md", "python -m experiments.generate"): ("out/00.txt", "out/00-0.png", "out/00.json"),
    ("docs/pretrain.md", "TrainConfig.sample_every"): ("runs/sampled/samples/*",),
    ("docs/pretrain.md", "python -m experiments.digits"): (
        "runs/mine/model/metrics.jsonl", "runs/mine/model/tensorboard/*", "runs/mine/model/checkpoints/2/*",
        "runs/mine/model/tokenizer/vocab.json", "runs/mine/model/config.json", "runs/mine/model/config.gin",
        "runs/mine/model/operative_config.gin", "runs/mine/model/versions.json", "runs/mine/model/sharding.txt",
    ),
    ("docs/emoji.md", "python -m experiments.evaluate"): ("runs/emoji/model/captions.json", "runs/emoji/model/samples.png"),
    ("docs/convert.md", "pip install"): (
        "runs/chameleon-7b/checkpoints/0/*", "runs/chameleon-7b/tokenizer/vocab.json", "runs/chameleon-7b/convert.json",
        "out/00.txt",
    ),
    ("docs/three_modalities.md", "pip install"): (
        "runs/three/three_modalities.json", "runs/three/three_modalities.png", "runs/three/sounds/*.wav",
    ),
    ("docs/three_modalities.md", "python -m experiments.actions --workdir"): ("runs/actions/actions.*",),
    ("docs/generate.md", "python -m experiments.generate"): ("out/00-0.png", "out/00.json"),
    ("docs/generate.md", "python -m experiments.generate --workdir=runs/emoji/model --prompts"): (
        "out/0000-00.txt", "out/0001.txt", "out/sheet.png",
    ),
    ("docs/serve.md", "curl"): ("heart.png",),
}  # fmt: skip


def of_block(table: dict, block):
    """The entry of a table whose page and beginning, the longest that fits, are those of a block; None without one."""
    fitting = [(page, start) for page, start in table if page == block.page and block.text.startswith(start)]
    return table[max(fitting, key=lambda key: len(key[1]))] if fitting else None
