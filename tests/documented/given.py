"""What the readers of the pages have: pictures, tables, gin files, released weights and trained models, all small.

A maker is called with the path where the thing is to be. `Of(page)` is what another page of the same story has made there.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.documented import blocks

Maker = Callable[[Path], None]


@dataclasses.dataclass(frozen=True)
class Of:
    """The same path in the home of another page."""

    page: str


def fragment(page: str, beginning: str) -> str:
    """The text block of a page that begins so."""
    (found,) = (
        block.text for block in blocks.of_page(page) if block.kind == "text" and block.text.startswith(beginning)
    )
    return found


def text(content: str) -> Maker:
    return lambda path: path.write_text(content)


def picture(side: int = 16) -> Maker:
    def make(path: Path) -> None:
        pixels = np.random.default_rng(len(path.name)).integers(0, 255, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(path)

    return make


def sound(path: Path) -> None:
    tone = np.sin(2 * np.pi * (440 + 10 * len(path.stem)) * np.arange(5120) / 8000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((tone * 8000).astype("<i2").tobytes())


def data(form: str, count: int = 48) -> Maker:
    """Captioned pictures in one of the forms of tests/own_data_forms.py; a folder, or a table in one."""

    def make(path: Path) -> None:
        from tests import own_data_forms

        getattr(own_data_forms, f"write_{form}")(path, own_data_forms.records(count))

    return make


def pictures_alone(path: Path) -> None:
    path.mkdir()
    for number in range(48):
        picture()(path / f"{'i' * number}{number}.png")


def gin_files_of_new(folder: Path) -> None:
    """What `new` makes of captioned pictures on a machine of a CPU."""
    from chameleon_jax.own_data import proposal, sizes
    from tests.own_data.test_proposal import CPU

    photos = folder.with_name(f"{folder.name}_data")
    data("csv")(photos)
    found = proposal.look(proposal.source_of_flags(str(photos), "", None))
    chosen = sizes.choose(found, CPU, 5.0)
    proposal.write(proposal.Proposal(found=found, machine=CPU, sizes=chosen, folder=folder), overwrite=False, shown=1)


SMALL_TOKENIZER = """
TrainTokenizerConfig.vocab = @text_and_image()
text_and_image.image_codes = 16
text_and_image.codes_per_image = 16
text_and_image.reserved = 10
text_and_image.text_tokens = 300
TrainTokenizerConfig.image = @ImageConfig()
ImageConfig.resolution = 8
TrainTokenizerConfig.vq = @VQConfig()
VQConfig.resolution = 8
VQConfig.patch_size = 2
VQConfig.channels = 8
VQConfig.channel_multipliers = (1,)
VQConfig.res_blocks = 1
VQConfig.latent_channels = 8
VQConfig.embed_dim = 8
VQConfig.codes = 16
VQConfig.norm_groups = 4
TrainTokenizerConfig.vq_train = @VQTrainConfig()
VQTrainConfig.batch_size = 8
"""


def sources(root: str, path: str = "photos/captions.csv", kind: str = "csv") -> str:
    """Gin lines of one source of a config."""
    many = "source = @mine/SourceConfig()" if root == "CaptionEvalConfig" else "sources = [@mine/SourceConfig()]"
    lines = f"{root}.{many}\nmine/SourceConfig.name = 'mine'\nmine/SourceConfig.kind = '{kind}'\n"
    return f"{lines}mine/SourceConfig.path = '{path}'\n"


def emoji_archives(folder: Path) -> None:
    """The npm packages of the four vendors, with a dozen pictures each instead of 3,700."""
    from chameleon_jax.demo import emoji_captions

    folder.mkdir(parents=True)
    groups = list(emoji_captions.GROUPS)
    names = [f"{0x1F600 + i:x}" for i in range(12)]
    entries = [
        {
            "image": f"{name}.png", "name": f"FACE {i}", "short_name": f"face_{i}", "short_names": [f"face_{i}"],
            "category": groups[i % len(groups)], "subcategory": "face",
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    for number, vendor in enumerate(("google", "twitter", "facebook", "apple")):
        random = np.random.default_rng(number)
        with tarfile.open(folder / f"emoji-datasource-{vendor}-16.0.0.tgz", "w:gz") as tar:
            files = {"package/emoji.json": json.dumps(entries).encode()}
            for name in names:
                file = io.BytesIO()
                Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8)).save(file, "PNG")
                files[f"package/img/{vendor}/64/{name}.png"] = file.getvalue()
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def three_forms(folder: Path) -> None:
    """Records of a text, a picture, a sound and actions each."""
    folder.mkdir()
    records = []
    for i in range(24):
        picture()(folder / f"{'p' * i}{i}.png")
        sound(folder / f"{i}.wav")
        named = [{"text": f"number {i}"}, {"image": f"{'p' * i}{i}.png"}, {"sound": f"{i}.wav"}, {"actions": [i % 5]}]
        records.append({"id": str(i), "segments": named})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def bundle(path: Path) -> None:
    """A tokenizer of random weights."""
    from tests.tiny_run import make_run

    make_run().bundle.save(path)


def stores(*names: str) -> Maker:
    """A folder of token stores of captioned pictures, by the tokenizer that `model` has."""

    def make(folder: Path) -> None:
        from chameleon_jax.configs import SourceConfig, TokenizeConfig
        from chameleon_jax.data.pipeline import tokenize

        folder.mkdir(parents=True, exist_ok=True)
        data("manifest")(folder / "data")
        bundle(folder / "tokenizer")
        source = SourceConfig(name="bars", kind="folder", path=str(folder / "data"))
        config = TokenizeConfig(sources=(source,), tokenizer=str(folder / "tokenizer"))
        for name in names:
            tokenize(config, str(folder / name))

    return make


def store(path: Path) -> None:
    """One token store."""
    stores(path.name)(path.parent)


def model(path: Path) -> None:
    """A run of random weights, with a codec, as training leaves it."""
    from tests.mistakes.world import _run
    from tests.tiny_run import make_run

    path.parent.mkdir(parents=True, exist_ok=True)
    _run(path, make_run())


def release(kind: str) -> Maker:
    """A small release in Meta's tree: `data/` with tokenizer/ and models/7b or models/30b."""

    def make(path: Path) -> None:
        from tests.convert import small_release

        small_release.write(path, kind)

    return make


def converted(kind: str, layout: str = "jax") -> Maker:
    """A small release, as `experiments.convert` writes it in this layout; lumina as Lumina-mGPT is published."""

    def make(path: Path) -> None:
        from chameleon_jax.convert.opening import Options, open_release
        from chameleon_jax.convert.write import write
        from tests.convert import small_release

        scratch = path.with_name(f"{path.name}.scratch")
        small_release.write(scratch, "7b" if kind == "lumina" else kind)
        write(
            open_release(scratch, Options()),
            path if kind != "lumina" else scratch / "hf",
            "hf" if kind == "lumina" else layout,
        )
        if kind == "lumina":
            small_release.as_lumina(scratch / "hf")
            if layout == "hf":
                shutil.copytree(scratch / "hf", path)
            else:
                options = Options(vqgan=scratch / "tokenizer" / "vqgan.ckpt", resolution=64)
                write(open_release(scratch / "hf", options), path, layout)
        shutil.rmtree(scratch)

    return make


def codec_file(name: str) -> Maker:
    """A file of Meta's tokenizer/ folder."""

    def make(path: Path) -> None:
        from tests.convert import small_release

        scratch = path.with_name(f"{path.name}.scratch")
        small_release.write(scratch, "7b")
        shutil.copy(scratch / "tokenizer" / name, path)
        shutil.rmtree(scratch)

    return make
