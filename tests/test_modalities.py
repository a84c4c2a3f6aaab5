"""No place in the package knows which modalities there are: a table of other names goes the whole way."""

import ast
import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import chameleon_jax
from chameleon_jax.configs import (
    DataConfig,
    EngineConfig,
    GenerationConfig,
    ImageConfig,
    LossConfig,
    ModalityConfig,
    OptimConfig,
    PretrainConfig,
    SamplingConfig,
    ServeConfig,
    SoundConfig,
    SoundTrainConfig,
    SourceConfig,
    StoreConfig,
    TokenizeConfig,
    TrainConfig,
    TrainTokenizerConfig,
    TransformerConfig,
    VocabConfig,
    VQConfig,
    VQTrainConfig,
)
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.pipeline import tokenize
from chameleon_jax.data.store import TokenStore
from chameleon_jax.generation.engine import Engine, generate
from chameleon_jax.generation.loading import load_run
from chameleon_jax.generation.prompt import SpanOutput, TextOutput, encode_turns, read_output
from chameleon_jax.tokenizer_training.bundle import train_bundle
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.training.loop import pretrain
from chameleon_jax.training.pretraining import StoreData

TABLE = VocabConfig(
    modalities=(
        ModalityConfig(name="words", ids=300, span="free", codec="bpe", may_cut=True),
        ModalityConfig(name="moves", ids=5, span="free", sampling=SamplingConfig(temperature=0.0)),
        ModalityConfig(name="drawings", ids=16, span="fixed", length=4, codec="vqgan"),
        ModalityConfig(name="beeps", ids=8, span="fixed", length=4, codec="sound", loss_weight=0.5),
    ),
    reserved=4,
    added=("<brush>",),
)
SOUND = SoundConfig(
    rate=1000,
    seconds=0.08,
    hop=10,
    frames_per_code=2,
    codes=8,
    embed_dim=4,
    channels=8,
    encoder_blocks=1,
    decoder_blocks=1,
)


def png(number):
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def wav(number):
    samples = np.sin(np.arange(80) * (0.1 + 0.05 * number)) * 20_000
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(1000)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of four modalities, none called as any release calls its own: from files to a few steps of training."""
    root = tmp_path_factory.mktemp("other")
    records = []
    for i in range(24):
        (root / f"{i}.png").write_bytes(png(i))
        (root / f"{i}.wav").write_bytes(wav(i))
        parts = [{"words": f"number {i}"}, {"drawings": f"{i}.png"}, {"beeps": f"{i}.wav"}, {"moves": [i % 5, 1, 4]}]
        records.append({"id": str(i), "segments": parts[i % 4 :] + parts[: i % 4]})
    records.append({"id": "pair", "words": "a pair", "moves": [0, 1]})
    (root / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceConfig(name="all", kind="jsonl", path=str(root / "data.jsonl"))
    train_bundle(
        TrainTokenizerConfig(
            sources=(source,),
            vocab=TABLE,
            image=ImageConfig(resolution=8),
            vq=VQConfig(
                resolution=8,
                patch_size=4,
                channels=8,
                channel_multipliers=(1,),
                res_blocks=1,
                latent_channels=8,
                embed_dim=8,
                codes=16,
                norm_groups=4,
            ),
            vq_train=VQTrainConfig(steps=2, batch_size=4, eval_every=2),
            sound=SOUND,
            sound_train=SoundTrainConfig(steps=2, batch_size=4, jitter=0),
        ),
        root / "tokenizer",
    )
    tokenize(TokenizeConfig(sources=(source,), tokenizer=str(root / "tokenizer"), codec_batch=4), root / "store")
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "d_ff": 16}
    config = PretrainConfig(
        model=TransformerConfig(vocab_size=400, max_seq_len=64, compute_dtype="float32", **shape),
        data=DataConfig(stores=(StoreConfig(path=str(root / "store")),), seq_len=64),
        train=TrainConfig(steps=3, batch_size=8, log_every=1),
        optim=OptimConfig(warmup_steps=1),
        loss=LossConfig(weights={"moves": 2.0}),
    )
    assert pretrain(config, str(root / "model")) == 0
    return root


@pytest.fixture(scope="module")
def run(workdir):
    return load_run(workdir / "model")


def test_a_store_counts_the_ids_and_spans_of_every_modality(workdir):
    summary = TokenStore.open(workdir / "store").summary()
    assert list(summary.tokens_by_modality) == list(TABLE.names)
    assert summary.tokens_by_modality["drawings"] == summary.tokens_by_modality["beeps"] == 24 * 4
    assert summary.tokens_by_modality["moves"] == 24 * 3 + 2
    assert (summary.spans_by_modality["drawings"], summary.spans_by_modality["beeps"]) == (24, 24)
    assert (summary.documents, summary.rejects) == (25, 0)


def test_training_tells_the_loss_of_every_modality(workdir):
    lines = [json.loads(line) for line in (workdir / "model" / "metrics.jsonl").read_text().splitlines()]
    for name in TABLE.names:
        assert np.isfinite(lines[-1][f"loss/{name}"]) and lines[-1][f"tokens_seen/{name}"] > 0
    assert {key for key in lines[-1] if key.startswith("loss/")} == {f"loss/{name}" for name in TABLE.names}


@pytest.mark.parametrize("mode", ["words", "moves", "drawings", "beeps", "moves+beeps", "interleaved"])
def test_every_modality_is_written_alone_and_together(run, mode):
    parts = ["one", Segment("drawings", png(1)), Segment("beeps", wav(1)), Segment("moves", (1, 2))]
    prompt = encode_turns([parts], run.bundle)
    config = GenerationConfig(mode=mode, max_tokens=20, max_spans={"drawings": 2, "beeps": 1})
    [output] = generate(run.params, run.model, run.bundle.vocab, [prompt], config)
    found = read_output(output.ids, run.bundle)
    written = {"words" if isinstance(part, TextOutput) else part.modality for part in found}
    assert written and written <= (set(TABLE.names) if mode == "interleaved" else set(mode.split("+")))
    for part in found:
        if isinstance(part, SpanOutput) and part.codes is not None and part.modality in run.bundle.codecs:
            codec = run.bundle.codecs[part.modality]
            assert codec.to_file(part.item)[:4] == (b"\x89PNG" if part.modality == "drawings" else b"RIFF")
    if mode in ("drawings", "beeps"):
        whole = [part for part in found if part.codes is not None]
        assert len(whole) == {"drawings": 2, "beeps": 1}[mode] and output.finish_reason == "spans"


def test_what_goes_in_comes_out(run):
    parts = ["one", Segment("drawings", png(1)), Segment("moves", (3, 0, 4)), Segment("beeps", wav(2))]
    words, drawing, moves, beep = read_output(encode_turns([parts], run.bundle), run.bundle)
    assert words.text == "one" and moves.codes.tolist() == [3, 0, 4] and moves.item is None
    np.testing.assert_array_equal(drawing.codes, run.bundle.codes("drawings", png(1)))
    np.testing.assert_array_equal(beep.codes, run.bundle.codes("beeps", wav(2)))


def test_the_server_takes_and_gives_every_modality(run):
    testclient = pytest.importorskip("starlette.testclient")
    from chameleon_jax.serving.app import create_app
    from chameleon_jax.serving.service import Service

    serve = ServeConfig(content_format="parts", engine=EngineConfig(slots=2, block=4))
    with Engine(run.params, run.model, run.bundle.vocab, serve.engine) as engine:
        service = Service(engine=engine, bundle=run.bundle, config=serve, model_name="other")
        client = testclient.TestClient(create_app(service), base_url="http://127.0.0.1")
        [model] = client.get("/v1/models").json()["data"]
        described = {row["name"]: row["media"] for row in model["chameleon"]["modalities"]}
        assert described == {"words": "text", "moves": "codes", "drawings": "image", "beeps": "audio"}
        content = [{"type": "text", "text": "one"}, {"type": "codes", "modality": "moves", "codes": [1, 2]}]

        def ask(**settings):
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 20, "seed": 1, **settings}
            return client.post("/v1/chat/completions", json=body)

        for mode, kind in (("moves", "codes"), ("drawings", "image_url"), ("beeps", "audio_url")):
            reply = ask(mode=mode, max_spans={"drawings": 1, "beeps": 1})
            assert reply.status_code == 200, reply.text
            parts = reply.json()["choices"][0]["message"]["content"]
            assert {part["type"] for part in parts} == {kind} and {part["modality"] for part in parts} == {mode}
        refused = ask(mode="drawing")
        assert refused.status_code == 400 and "no mode 'drawing' (did you mean 'drawings'" in refused.text
        assert "no modality 'sounds'" in ask(sampling={"sounds": {"temperature": 0}}).text


BAD_REQUESTS = {
    "an unknown mode": ({"mode": "beep"}, r"no mode 'beep' \(did you mean 'beeps'"),
    "sampling of nobody": ({"sampling": {"word": SamplingConfig()}}, r"no modality 'word' \(did you mean 'words'"),
    "spans of nobody": ({"max_spans": {"images": 1}}, "no modality 'images'"),
    "a grid of no grid": ({"grids": {"beeps": (2, 2)}}, "'beeps' of this vocabulary has no spans of many sizes"),
    "no room for a span": ({"mode": "beeps", "max_tokens": 3}, "a span of 'beeps' needs 6"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_requests_for_what_the_model_lacks_are_refused_in_one_line(run, case):
    settings, reason = BAD_REQUESTS[case]
    prompt = encode_turns([["one"]], run.bundle)
    with pytest.raises(chameleon_jax.errors.GenerationError, match=reason) as raised:
        generate(run.params, run.model, run.bundle.vocab, [prompt], GenerationConfig(**settings))
    assert "\n" not in str(raised.value)


def test_weights_of_a_modality_that_the_store_lacks_are_refused(workdir):
    config = PretrainConfig(
        model=TransformerConfig(
            vocab_size=400, max_seq_len=64, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8
        ),
        data=DataConfig(stores=(StoreConfig(path=str(workdir / "store")),), seq_len=64),
        train=TrainConfig(steps=1, batch_size=8),
        loss=LossConfig(weights={"image": 0.3}),
    )
    with pytest.raises(chameleon_jax.errors.ConfigError, match="no modality 'image'; there are words, moves"):
        pretrain(config, str(workdir / "refused"))


# Where names of text and images may stand: the family's own table and files, what public data sets and OpenAI's clients call their
# fields, kinds of media, and the demos' own tables.
NAMED = {
    "configs/vocab.py": "the table of the Chameleon family",
    "data/sources/fields.py": "fields of public data sets",
    "data/sources/schemas.py": "fields of public data sets",
    "data/sources/columns.py": "fields of public data sets",
    "data/sources/tars.py": "fields of public data sets",
    "serving/schema.py": "types of parts in OpenAI's messages",
    "serving/messages.py": "kinds of media in OpenAI's messages",
    "serving/replies.py": "kinds of media in OpenAI's messages",
    "serving/service.py": "kinds of media in OpenAI's usage",
    "serving/settings.py": "kinds of media in OpenAI's `modalities`",
    "serving/app.py": "kinds of media for clients",
    "serving/tolerance.py": "types of parts in OpenAI's messages",
    "serving/responses.py": "kinds of media in OpenAI's responses",
    "configs/serving.py": "forms of `message.content`",
    "commands.py": "the name of a command",
    "own_data/gin_files.py": "rows of the table that it writes",
    "own_data/proposal.py": "what is told of the picture codec that it proposes",
    "own_data/sizes.py": "rows of the table that it writes",
    "own_data/survey.py": "a word of what it counts",
    "generation/asked.py": "what people write for a picture",
    "generation/chat.py": "what people write for a picture",
    "generation/command_flags.py": "a name of a flag",
    "generation/drawing.py": "kinds of media of what is drawn",
    "data/sources/trees.py": "fields of public data sets",
    "data/sources/fingerprint.py": "what a fingerprint calls a file of words",
    "evaluation/records.py": "kinds of media for the page",
    "evaluation/training_samples.py": "kinds of media of what is drawn",
    "generation/reader.py": "kinds of media for the page",
    "tokenizers/pictures.py": "the kind of media of a codec",
    "tokenizers/perceived.py": "the kind of media of a codec, and a field of its file",
    "tokenizers/codec.py": "the kinds of media",
    "configs/generation.py": "the two scales of guidance",
    "data/store.py": "what stores of format 1 count",
    "parallel/group.py": "a field of its own messages",
}


def test_no_module_names_a_modality():
    root, found = Path(chameleon_jax.__file__).parent, set()
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if name.startswith(("convert/", "demo/")):  # releases, and tables of their own
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in ("text", "image", "actions"):
                found.add(name)
    assert found <= set(NAMED), found - set(NAMED)


def test_rows_behind_text_are_trained_by_name_with_their_markers(workdir):
    store = DataConfig(stores=(StoreConfig(path=str(workdir / "store")),), seq_len=64)
    rows = StoreData(loader=Loader(store, 8, 1)).row_names
    vocab = load_run(workdir / "model").bundle.vocab
    words, moves, drawings, beeps = vocab.modalities
    assert rows["drawings"] == (drawings.start, drawings.stop)  # the first row with markers, as images of the releases
    assert (rows["words"], rows["moves"]) == ((words.start, words.stop), (moves.start, moves.stop))
    assert rows["beeps"] == (beeps.start, beeps.begin_marker + 1) and rows["beeps"][1] == rows["added"][0]
    assert rows["<brush>"] == rows["added"] == (vocab.size - 1, vocab.size)
