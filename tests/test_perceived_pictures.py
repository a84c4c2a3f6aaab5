"""Pictures as patches on the whole way: files, store, batches, training, generation, Python and server."""

import base64
import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import (
    DataConfig,
    EngineConfig,
    GenerationConfig,
    GuidanceConfig,
    ImageConfig,
    MeshConfig,
    ModalityConfig,
    OptimConfig,
    PatchEncoderConfig,
    PretrainConfig,
    SamplingConfig,
    ServeConfig,
    SourceConfig,
    StoreConfig,
    TokenizeConfig,
    TrainConfig,
    TransformerConfig,
    VocabConfig,
    VQConfig,
)
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.pipeline import tokenize
from chameleon_jax.data.store import TokenStore, verify
from chameleon_jax.errors import GenerationError, StoreError
from chameleon_jax.evaluation import captions, likelihood
from chameleon_jax.generation.api import Generator
from chameleon_jax.generation.engine import Engine, generate
from chameleon_jax.generation.loading import load_run
from chameleon_jax.generation.prompt import build_request
from chameleon_jax.generation.requests import Request
from chameleon_jax.generation.weights import decoding_form
from chameleon_jax.models import params, perception, transformer
from chameleon_jax.parallel.batches import to_global
from chameleon_jax.parallel.mesh import TRAINING, make_mesh
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.tokenizers.perceived import PatchCodec
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.text import train_bpe
from chameleon_jax.training.loop import pretrain
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.step import gradient_sums
from chameleon_jax.training.task import Recipe

SEEN = ModalityConfig(name="seen", ids=1, length=4, codec="patches", output=False)
TABLE = VocabConfig(
    modalities=(
        ModalityConfig(name="words", ids=300, span="free", codec="bpe", may_cut=True),
        ModalityConfig(name="drawings", ids=16, length=4, codec="vqgan"),
        SEEN,
    ),
    reserved=4,
)
MODEL = TransformerConfig(
    vocab_size=400,
    max_seq_len=64,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=8,
    d_ff=16,
    compute_dtype="float32",
    init_std=0.3,
    perception=PatchEncoderConfig(patch_size=4, width=8, n_layers=1, n_heads=2, d_ff=16),
)


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, "PNG")
    return buffer.getvalue()


def make_bundle():
    text = train_bpe([f"number {i}" for i in range(9)], TABLE)
    config = VQConfig(
        resolution=8,
        patch_size=4,
        channels=8,
        channel_multipliers=(1,),
        res_blocks=1,
        latent_channels=8,
        embed_dim=8,
        codes=16,
        norm_groups=4,
    )
    codec = vqgan.Codec(params=vqgan.init(jax.random.key(0), config), config=config)
    codecs = {
        "drawings": PictureCodec(config=ImageConfig(resolution=8), vqgan=codec),
        "seen": PatchCodec(config=ImageConfig(resolution=8), patches=4),
    }
    return TokenizerBundle(vocab_config=text.vocab_config, text=text, codecs=codecs)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tokenizer, and stores of documents of none to three pictures, in shards of seven documents; two fill a row or more."""
    root = tmp_path_factory.mktemp("perceived")
    make_bundle().save(root / "tokenizer")
    records = []
    for i in range(30):
        (root / f"{i}.png").write_bytes(png(i))
        pictures = [{"image": f"{(i + k) % 30}.png"} for k in range(i % 4)]
        parts = [part for picture in pictures for part in (picture, {"words": f"number {i} "})]
        records.append({"id": str(i), "segments": [{"words": "number"}, *parts]})
    records.append({"id": "drawn", "segments": [{"image": "1.png"}, {"words": "number"}, {"image": "2.png"}]})
    records.append({"id": "named", "words": "number 3", "seen": "3.png"})
    (root / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceConfig(name="all", kind="jsonl", path=str(root / "data.jsonl"))
    tokenize(
        TokenizeConfig(
            sources=(source,),
            tokenizer=str(root / "tokenizer"),
            image_input="patches",
            documents_per_shard=7,
            codec_batch=4,
        ),
        root / "store",
    )
    return root


def run_config(root, model=MODEL, **train):
    return PretrainConfig(
        model=model,
        data=DataConfig(stores=(StoreConfig(path=str(root / "store")),), seq_len=48, seed=1),
        train=TrainConfig(**{"steps": 3, "batch_size": 8, "log_every": 1, **train}),
        optim=OptimConfig(warmup_steps=1, learning_rate=1e-2),
    )


@pytest.fixture(scope="module")
def run(root):
    assert pretrain(run_config(root), str(root / "model")) == 0
    return load_run(root / "model")


def test_a_store_gives_back_the_pictures_of_every_document(root):
    store = verify(root / "store")
    seen = store.vocab.row("seen")
    documents = np.arange(store.documents)
    first, held = store.pictures_of(documents, np.zeros_like(documents), store.lengths)
    assert held.tolist() == [i % 4 for i in range(30)] + [1, 1]
    for document, at, count in zip(documents[:30], first, held, strict=False):
        found = store.read_pictures(np.arange(at, at + count)) if count else []
        for k, picture in enumerate(found):
            np.testing.assert_array_equal(picture, pixels((document + k) % 30))
    spans = store.spans([30, 31])
    assert [(span.modality, span.loss) for span in spans[0] if span.modality] == [(seen, False), (1, True)]
    assert spans[1][1].modality == seen  # of a pair, what is only taken in comes first
    assert all(not span.loss for d in store.spans(documents) for span in d if span.modality == seen)


def test_damaged_pixels_are_found(root, tmp_path):
    shutil.copytree(root / "store", tmp_path / "store")
    [file] = [p for p in (tmp_path / "store" / "shards" / "00000" / "pixels").rglob("c*/**/*") if p.is_file()]
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    store = TokenStore.open(tmp_path / "store")
    with pytest.raises(StoreError, match="shard 00000 is damaged"):
        store.read_pictures(np.arange(2))
    with pytest.raises(StoreError, match=r"pixels.* does not match its sha256"):
        verify(tmp_path / "store")


def test_batches_hold_the_pictures_of_their_rows_however_the_rows_are_divided(root):
    config = run_config(root).data
    whole = Loader(config, 8, 4)
    parts = [Loader(config, 8, 4, rows=rows) for rows in ([0, 1, 2, 5], [3, 4, 6, 7])]
    places = TokenStore.open(root / "store").vocab.perceived
    for step in range(4):
        batch = whole.host_batch(step)
        counts = places.holds(batch.tokens).sum(axis=1) // SEEN.length
        assert batch.pictures.shape[1:] == (whole.host_batch(0).pictures.shape[1], 8, 8, 3)
        for row, count in enumerate(counts):
            shown = batch.pictures[row]
            assert shown[:count].any(axis=(1, 2, 3)).all() and not shown[count:].any()
        assert not batch.loss_weights[places.holds(batch.targets)].any()
        for rows, part in zip(([0, 1, 2, 5], [3, 4, 6, 7]), parts, strict=True):
            for wanted, made in zip(jax.tree.leaves(batch), jax.tree.leaves(part.host_batch(step)), strict=True):
                np.testing.assert_array_equal(wanted[rows], made)


def test_pictures_stand_at_their_own_documents(root):
    """Each document of a row, read by itself from the store, has the pictures that the row has at its placeholders."""
    loader, store = Loader(run_config(root).data, 8, 4), TokenStore.open(root / "store")
    places = store.vocab.perceived
    documents = store.read(range(store.documents))
    alike = {d.tobytes(): i for i, d in enumerate(documents)}
    checked = 0
    for step in range(4):
        batch = loader.host_batch(step)
        for row in range(8):
            at = 0
            for segment in range(1, batch.segment_ids[row].max() + 1):
                ids = batch.tokens[row][batch.segment_ids[row] == segment]
                count = int(places.holds(ids).sum()) // SEEN.length
                number = alike.get(ids.tobytes())
                if number is not None and number < 30:
                    for k in range(count):
                        np.testing.assert_array_equal(batch.pictures[row, at + k], pixels((number + k) % 30))
                        checked += 1
                at += count
    assert checked > 20


def gradient(root, *, sizes=(1, 1, 1), microbatches=1, model=MODEL):
    config = run_config(root, model, microbatches=microbatches)
    task = PretrainTask(config=config)
    recipe = Recipe.of(task, config)
    mesh = make_mesh(
        MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))), jax.devices()[: np.prod(sizes)]
    )
    batch = to_global(Loader(config.data, 8, 3).host_batch(0), mesh)
    placed = params.shardings(task.param_specs(), mesh, TRAINING)
    with jax.set_mesh(mesh):
        weights = jax.jit(lambda: params.initialise(jax.random.key(0), task.param_specs()), out_shardings=placed)()
        made, sums, _ = jax.jit(lambda w, b: gradient_sums(w, b, recipe, None, statistics=False))(weights, batch)
        return jax.device_get(made), float(sums.objective)


def test_gradients_on_a_mesh_in_microbatches_and_in_bfloat16_equal_the_plain_ones(root):
    exact, objective = gradient(root)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(exact["perception"]))
    cases = {
        "mesh": ({"sizes": (2, 2, 2)}, 1e-4),
        "microbatches": ({"sizes": (2, 1, 1), "microbatches": 2}, 1e-4),
        "bfloat16": ({"model": dataclasses.replace(MODEL, compute_dtype="bfloat16")}, 0.1),
    }
    for case, (settings, most) in cases.items():
        made, total = gradient(root, **settings)
        np.testing.assert_allclose(total, objective, rtol=most)
        for (path, wanted), ours in zip(jax.tree.leaves_with_path(exact), jax.tree.leaves(made), strict=True):
            off = np.linalg.norm(np.subtract(ours, wanted, dtype=np.float64)) / np.linalg.norm(np.float64(wanted))
            assert off < most, f"{case} {jax.tree_util.keystr(path)}: {off:.4f}"


PARTS = ["number ", Segment("seen", png(4)), " and ", Segment("seen", png(5)), Segment("drawings", png(6)), " is"]
GREEDY = {name: SamplingConfig(temperature=0.0) for name in ("words", "drawings")}


def forward_logits(run, ids, pictures):
    """Logits of all positions by one forward pass without a cache, pictures [I, 8, 8, 3] or None."""
    ids = np.asarray(ids)[None]
    seen = None if pictures is None else np.stack(pictures)[None]
    given = perception.inputs(run.params, ids, seen, run.model, run.bundle.vocab)
    where = np.arange(ids.shape[1])[None], np.ones_like(ids)
    out = transformer.forward(run.params, ids, *where, run.model, **given)
    return np.asarray(transformer.logits(run.params, out.hidden, run.model))[0]


def test_what_is_generated_greedily_is_what_one_forward_pass_says(run):
    vocab = run.bundle.vocab
    config = GenerationConfig(mode="words", max_tokens=12, sampling=GREEDY)
    request = build_request(PARTS, run.bundle, config)
    assert len(request.pictures) == 2 and (request.pictures[1] == pixels(5)).all()
    other = dataclasses.replace(request, pictures=request.pictures[::-1])
    asked = [request, other, build_request(["number"], run.bundle, config)]
    outputs = generate(
        run.params, run.model, vocab, [r.prompt for r in asked], config, pictures=[r.pictures for r in asked]
    )
    words = vocab.text
    for case, output in zip(asked, outputs, strict=True):
        whole = np.concatenate([case.prompt, output.ids])
        logits = forward_logits(run, whole, case.pictures or None)
        allowed = np.zeros(logits.shape[1], bool)
        allowed[words.start : words.stop] = allowed[vocab.eos] = True
        steps = np.where(allowed, logits, -np.inf)[len(case.prompt) - 1 : -1]
        # Greedy: what came is the best, to rounding.
        np.testing.assert_allclose(steps[np.arange(len(output.ids)), output.ids], steps.max(axis=1), atol=1e-4)
    first, second = (forward_logits(run, request.prompt, r.pictures)[-1] for r in (request, other))
    assert np.abs(first - second).max() > 1e-4  # the model sees which picture is where


def test_guidance_keeps_pictures_in_the_context_of_spans_alone(run):
    vocab = run.bundle.vocab
    guidance = GuidanceConfig(text=3.0, image=1.5)
    config = GenerationConfig(
        mode="drawings", max_tokens=6, max_spans={"drawings": 1}, sampling=GREEDY, guidance=guidance
    )
    request = build_request(PARTS, run.bundle, config)
    [output] = generate(run.params, run.model, vocab, [request.prompt], config, pictures=[request.pictures])
    row = vocab.modalities[vocab.row("drawings")]
    spans = [i for m in (vocab.perceived, row) for i in (*range(m.start, m.stop), m.begin_marker, m.end_marker)]
    of_spans = request.prompt[np.isin(request.prompt, [vocab.bos, *spans])]
    full, middle, bare = (
        forward_logits(run, np.concatenate([prompt, output.ids]), pictures)[len(prompt) : -1]
        for prompt, pictures in (
            (request.prompt, request.pictures),
            (of_spans, request.pictures),
            (np.array([vocab.bos]), None),
        )
    )
    mixed = bare + guidance.image * (middle - bare) + guidance.text * (full - middle)
    codes = mixed[:4, row.start : row.stop]
    chosen = output.ids[1:5] - row.start
    np.testing.assert_allclose(codes[np.arange(4), chosen], codes.max(axis=1), atol=1e-3)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_smaller_weights_see_the_same_pictures(run, form):
    config = GenerationConfig(mode="words", max_tokens=1, sampling=GREEDY)
    request = build_request(PARTS, run.bundle, config)
    whole = likelihood.score(
        run.params, run.model, [request.prompt], [1], vocab=run.bundle.vocab, pictures=[request.pictures]
    )
    small = decoding_form(run.params, run.model, form)
    made = likelihood.score(
        small, run.model, [request.prompt], [1], vocab=run.bundle.vocab, pictures=[request.pictures]
    )
    np.testing.assert_allclose(made, whole, rtol=0.02)
    with Engine(run.params, run.model, run.bundle.vocab, EngineConfig(slots=2, weights=form)) as engine:
        assert len(engine.stream(request).result().ids) == 1


def test_a_mesh_gives_what_one_device_gives(root, run):
    divided = load_run(root / "model", make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    config = GenerationConfig(mode="words", max_tokens=6, sampling=GREEDY)
    request = build_request(PARTS, run.bundle, config)
    given = {"vocab": run.bundle.vocab, "pictures": [request.pictures]}
    outputs, scores = [], []
    for each in (run, divided):
        [output] = generate(each.params, each.model, prompts=[request.prompt], config=config, **given)
        outputs.append(output.ids.tolist())
        scores.append(likelihood.score(each.params, each.model, [request.prompt], [2], **given))
    assert outputs[0] == outputs[1]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)


def test_likelihood_is_that_of_one_forward_pass(run):
    requests = [build_request(parts, run.bundle, GenerationConfig()) for parts in (PARTS, PARTS[:2], ["number"])]
    sequences = [np.append(r.prompt, run.bundle.vocab.eos) for r in requests]
    scores = likelihood.score(
        run.params,
        run.model,
        sequences,
        [2] * 3,
        vocab=run.bundle.vocab,
        pictures=[r.pictures for r in requests],
        batch_size=2,
    )
    for request, sequence, score in zip(requests, sequences, scores, strict=True):
        log_p = jax.nn.log_softmax(forward_logits(run, sequence, request.pictures or None))
        wanted = sum(log_p[at - 1, sequence[at]] for at in range(2, len(sequence)))
        np.testing.assert_allclose(score, wanted, rtol=1e-4)


def test_captions_are_chosen_by_what_is_perceived(run, root):
    records = [{"image": f"{i}.png", "text": f"number {i}"} for i in range(4)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceConfig(name="pairs", kind="jsonl", path=str(root / "pairs.jsonl"))
    data = captions.read_captioned(source, run.bundle, 4)
    assert data.modality == "seen" and (data.items[2] == pixels(2)).all()
    choice = captions.choose_captions(run.params, run.model, run.bundle, data, choices=2, seed=0)
    # Given another picture, the same captions have another likelihood.
    moved = dataclasses.replace(data, items=data.items[::-1])
    other = captions.choose_captions(run.params, run.model, run.bundle, moved, choices=2, seed=0)
    assert (np.abs(choice.log_likelihood - other.log_likelihood) > 1e-4).any(axis=1).all()


def test_python_and_server_put_pictures_into_patches(run):
    testclient = pytest.importorskip("starlette.testclient")
    from chameleon_jax.serving.app import create_app
    from chameleon_jax.serving.service import Service

    config = GenerationConfig(mode="words", max_tokens=8, sampling=GREEDY)
    request = build_request([Segment("seen", png(4)), "number"], run.bundle, config, format="chat")
    with Generator(run, EngineConfig(slots=2)) as generator:
        taken = generator._request([Image.fromarray(pixels(4)), "number"], config, {"format": "chat"})
        [wanted] = generator.generate([Image.fromarray(pixels(4)), "number"], config, format="chat")
    np.testing.assert_array_equal(taken.prompt, request.prompt)
    np.testing.assert_array_equal(taken.pictures[0], request.pictures[0])
    serve = ServeConfig(engine=EngineConfig(slots=2, block=4))
    with Engine(run.params, run.model, run.bundle.vocab, serve.engine) as engine:
        service = Service(engine=engine, bundle=run.bundle, config=serve, model_name="seeing")
        client = testclient.TestClient(create_app(service), base_url="http://127.0.0.1")
        [model] = client.get("/v1/models").json()["data"]
        assert model["chameleon"]["modes"] == ["words", "drawings", "interleaved", "unrestricted"]
        url = "data:image/png;base64," + base64.b64encode(png(4)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "number"}]

        def ask(**settings):
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, **settings}
            return client.post("/v1/chat/completions", json=body)

        reply = ask()
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"] == wanted
        assert ask(modalities=["text", "image"]).status_code == 200
        refused = ask(mode="seen")
        assert refused.status_code == 400 and "only takes in" in refused.text


def test_no_mode_writes_what_is_only_taken_in(run):
    vocab = run.bundle.vocab
    row = vocab.perceived
    taken_in = {*range(row.start, row.stop), row.begin_marker, row.end_marker}
    hot = {name: SamplingConfig(temperature=50.0, top_p=1.0) for name in TABLE.names}
    for mode in ("interleaved", "unrestricted"):
        config = GenerationConfig(mode=mode, max_tokens=50, sampling=hot)
        prompts = [np.array([vocab.bos])] * 8
        outputs = generate(run.params, run.model, vocab, prompts, config)
        assert not taken_in & {int(i) for output in outputs for i in output.ids}


BAD_REQUESTS = {
    "no picture": ({"pictures": ()}, "has 8 ids of 'seen', 4 for a picture, and 0 pictures; give one for each span"),
    "another size": ({"pictures": (pixels(1), np.zeros((4, 4, 3), np.uint8))}, r"this model perceives 8x8x3 of uint8"),
    "floats": ({"pictures": (pixels(1), pixels(2) / 255.0)}, r"and float64; this model perceives"),
    "its mode": ({"config": GenerationConfig(mode="words+seen")}, "asks for 'seen', which this model only takes in"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_request_that_does_not_fit_is_refused_in_one_line(run, case):
    changes, reason = BAD_REQUESTS[case]
    request: Request = dataclasses.replace(build_request(PARTS, run.bundle, GenerationConfig()), **changes)
    with pytest.raises(GenerationError, match=reason) as raised:
        generate(run.params, run.model, run.bundle.vocab, [request.prompt], request.config, pictures=[request.pictures])
    assert "\n" not in str(raised.value)
