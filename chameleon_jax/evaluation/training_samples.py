"""What a model makes of held-out documents while it is trained: their last part, written or drawn anew from what comes before.

So a picture is drawn from its caption, a caption is written for its picture, and any other modality is done alike. It is the
function that `training.loop` takes as its sampler; prompts, and the random numbers of every draw, are the same each time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from chameleon_jax.configs import EngineConfig, GenerationConfig, MeshConfig, PretrainConfig, SamplingConfig
from chameleon_jax.data.store import TokenStore
from chameleon_jax.evaluation import page
from chameleon_jax.generation.engine import BLOCK, Engine, slots_for
from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.generation.prompt import SpanOutput, TextOutput, encode_turns, read_output
from chameleon_jax.generation.requests import Request
from chameleon_jax.parallel.mesh import make_mesh, mesh_of
from chameleon_jax.progress import count as plural
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.images import to_image
from chameleon_jax.training.samples import Samples, Sound
from chameleon_jax.vocab import GridSpan
from chameleon_jax.workdir import TOKENIZER

_OF_A_KIND, _KINDS = 4, 6  # most samples from one modality to another, and most such pairs
_DOCUMENTS = 64  # looked at for them
_WORDS = 48  # ids of text that are written
_PICTURE = 96  # pixels of a picture's side on the page


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Case:
    """A prompt, what of it is shown, and what stood behind it in the document."""

    kind: str
    request: Request
    given: _Seen
    original: _Seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seen:
    """Words and numbers, pictures, and sounds of a stretch of ids."""

    words: str = ""
    pictures: tuple[Image.Image, ...] = ()
    sounds: tuple[Sound, ...] = ()


class TrainingSamples:
    """Cases of the first held-out store, or of the first training store where there is none; see the module.

    `config.train.sample_prompts` take the place of the documents' texts. Raises StoreError and TokenizerError where store or
    tokenizer cannot be read.
    """

    def __init__(self, config: PretrainConfig):
        path = Path((config.data.eval_stores or config.data.stores)[0].path)
        self._config, self._bundle = config, TokenizerBundle.load(path / TOKENIZER)
        self._cases = _cases(TokenStore.open(path), self._bundle, config)

    def __call__(self, params: Any, step: int) -> Samples:
        """Samples of parameters that lie on devices of this process."""
        model = dataclasses.replace(self._config.model, vocab_size=params["embed"].shape[0])
        longest = max((len(c.request.prompt) + c.request.config.max_tokens for c in self._cases), default=1)
        context = slots_for(longest, model.max_seq_len)
        engine = EngineConfig(slots=max(1, len(self._cases)), context=context, block=BLOCK)
        # One device where they lie on one: the mesh in use may be of other processes too.
        mesh = mesh_of(params) or make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), [_device(params)])
        with Engine(params, model, self._bundle.vocab, engine, mesh=mesh) as running:
            streams = [running.stream(case.request) for case in self._cases]
            outputs = [stream.result().ids for stream in streams]
        made = [_seen(ids, self._bundle) for ids in outputs]
        return _samples(self._cases, made, step)


def _device(params: Any) -> jax.Device:
    return next(iter(jax.tree.leaves(params)[0].devices()))


# --- cases -----------------------------------------------------------------------------------------------------------


def _cases(store: TokenStore, bundle: TokenizerBundle, config: PretrainConfig) -> list[_Case]:
    found: dict[str, list[_Case]] = {}
    chosen = list(range(min(_DOCUMENTS, store.documents)))
    for document, ids, spans in zip(chosen, store.read(chosen), store.spans(chosen), strict=True):
        places = np.concatenate([[0], np.cumsum([span.length for span in spans])])
        pixels = store.pictures_in(document)
        text = bundle.vocab.text
        held = [i for i, s in enumerate(spans) if s.modality or text.holds(ids[places[i] : places[i + 1]]).any()]
        if not held or not bundle.vocab.modalities[spans[held[-1]].modality].output:
            continue
        last, cut = spans[held[-1]], int(places[held[-1]])
        if len(held) == 1 and not last.modality:
            cut += min(16, last.length // 2)  # text alone: its beginning is given
        from_to = [bundle.vocab.names[spans[i].modality] for i in (held[-2:] if len(held) > 1 else held * 2)]
        case = _case(ids, cut, int(places[held[-1] + 1]), tuple(pixels), from_to, bundle, config)
        if case is not None:
            found.setdefault(case.kind, []).append(case)
    if config.train.sample_prompts:
        found = {kind: cases for kind, cases in found.items() if not kind.startswith(f"{bundle.vocab.text.name} to")}
        asked = [_asked(prompt, bundle, config) for prompt in config.train.sample_prompts]
        found = {asked[0].kind: asked} | found
    own = len(config.train.sample_prompts)
    chosen = [case for cases in list(found.values())[:_KINDS] for case in cases[: max(_OF_A_KIND, own)]]
    return [
        dataclasses.replace(case, request=dataclasses.replace(case.request, row_id=number))
        for number, case in enumerate(chosen)
    ]


def _case(
    ids: Int[np.ndarray, "n"],
    cut: int,
    stop: int,
    pixels: tuple[UInt8[np.ndarray, "H W 3"], ...],
    from_to: list[str],
    bundle: TokenizerBundle,
    config: PretrainConfig,
) -> _Case | None:
    """The document cut there; None where its codec cannot decode, or the model's context is too short for it."""
    given, wanted = from_to
    modality = bundle.vocab.modalities[bundle.vocab.row(wanted)]
    codec = bundle.codecs.get(wanted)
    room = config.model.max_seq_len - cut
    if (codec and not codec.can_decode) or cut < 1 or room < stop - cut:
        return None
    settings: dict[str, Any] = {"mode": wanted, "seed": config.train.seed}
    if modality is bundle.vocab.text:
        settings |= {"max_tokens": min(_WORDS, room), "sampling": {wanted: SamplingConfig(temperature=0.0)}}
        settings["stop_at_turn_end"] = bool((ids[cut:] == bundle.vocab.end_of_turn).any())
    elif modality.marked:
        settings |= {"max_tokens": stop - cut, "max_spans": {wanted: 1}}
        if isinstance(modality.grammar, GridSpan):
            settings["grids"] = {wanted: split_spans(ids[cut:stop], bundle.vocab)[0].grid}
    else:
        settings["max_tokens"] = min(2 * (stop - cut) + 8, room)
    return _Case(
        kind=f"{given} to {wanted}",
        request=Request(prompt=ids[:cut], config=GenerationConfig(**settings), pictures=pixels),
        given=dataclasses.replace(_seen(ids[:cut], bundle), pictures=tuple(map(Image.fromarray, pixels)))
        if pixels
        else _seen(ids[:cut], bundle),
        original=_seen(ids[cut:stop], bundle),
    )


def _asked(prompt: str, bundle: TokenizerBundle, config: PretrainConfig) -> _Case:
    """A prompt of the config: a picture is drawn from it where the model can, else it is continued."""
    name, codec = bundle.image_output
    text = bundle.vocab.text.name
    wanted = name if codec is not None and codec.can_decode else text
    ids = encode_turns([[prompt]], bundle)
    room = config.model.max_seq_len - len(ids)
    settings = {"max_tokens": min(_WORDS, room)} if wanted == text else {"max_tokens": room, "max_spans": {wanted: 1}}
    request = Request(prompt=ids, config=GenerationConfig(mode=wanted, seed=config.train.seed, **settings))
    return _Case(kind=f"{text} to {wanted}", request=request, given=_Seen(words=prompt), original=_Seen())


def _seen(ids: Int[np.ndarray, "n"], bundle: TokenizerBundle) -> _Seen:
    words, pictures, sounds = [], [], []
    for part in read_output(ids, bundle):
        if isinstance(part, TextOutput):
            words.append(part.text)
        elif part.item is not None and bundle.codecs[part.modality].media == "image":
            pictures.append(to_image(part.item))
        elif part.item is not None:
            sounds.append(_sound(part, bundle))
        elif part.codes is not None and part.modality not in bundle.codecs:
            words.append(f"[{part.modality} {' '.join(map(str, part.codes.reshape(-1)))}]")
    return _Seen(words="".join(words).strip(), pictures=tuple(pictures), sounds=tuple(sounds))


def _sound(part: SpanOutput, bundle: TokenizerBundle) -> Sound:
    codec = bundle.codecs[part.modality]
    return Sound(file=codec.to_file(part.item), rate=codec.config.rate, seconds=len(part.item) / codec.config.rate)


# --- the page --------------------------------------------------------------------------------------------------------


def _samples(cases: list[_Case], made: list[_Seen], step: int) -> Samples:
    sections: list[page.Section] = []
    words, sounds = [], {}
    for kind in dict.fromkeys(case.kind for case in cases):
        rows = []
        for number, (case, own) in enumerate((c, m) for c, m in zip(cases, made, strict=True) if c.kind == kind):
            label, shown = list(_labels(case, own)), list(_pictures(case, own))
            rows.append(page.Row("\n".join(label), [p for _, p in shown], [caption for caption, _ in shown]))
            words.append(f"**{kind}** " + "; ".join(label))
            sounds |= {f"{kind} {number}-{i}".replace(" ", "_"): sound for i, sound in enumerate(own.sounds)}
        sections.append(page.Section(kind, rows))
    drawn = page.render(
        f"Step {step:,}", "the last part of held-out documents, made anew", sections, picture_size=_PICTURE
    )
    return Samples(page=np.asarray(drawn), words="\n\n".join(words), sounds=sounds)


def _labels(case: _Case, own: _Seen) -> Iterator[str]:
    for name, seen in (("given", case.given), ("made", own), ("was", case.original)):
        if seen.words or (name == "made" and not (own.pictures or own.sounds)):
            yield f"{name}: {seen.words}"
        if seen.sounds:
            yield f"{name}: {plural(len(seen.sounds), 'sound')}"


def _pictures(case: _Case, own: _Seen) -> Iterator[tuple[str, Image.Image]]:
    for name, seen in (("given", case.given), ("made", own), ("was", case.original)):
        yield from ((name, picture) for picture in seen.pictures)
