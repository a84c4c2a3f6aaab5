"""Pretraining on token stores as a task: next-token loss by modality over packed rows."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from chameleon_jax.checkpoints.restore import saved_metadata
from chameleon_jax.configs import PretrainConfig, VocabConfig
from chameleon_jax.data.batch import Batch
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.store import read_vocab
from chameleon_jax.errors import ConfigError
from chameleon_jax.files import new_folder
from chameleon_jax.models import params, perception, transformer
from chameleon_jax.models.statistics import Statistics
from chameleon_jax.parallel import distributed
from chameleon_jax.parallel.batches import local_rows, to_global
from chameleon_jax.parallel.mesh import TRAINING, check_fits
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.training import initial, losses, memory, telemetry
from chameleon_jax.training import step as step_lib
from chameleon_jax.training.initial import RunTokenizer
from chameleon_jax.training.losses import LossSums
from chameleon_jax.training.task import Evaluator, Recipe
from chameleon_jax.training.trainable import Range
from chameleon_jax.vocab import Vocab
from chameleon_jax.workdir import CHECKPOINTS, TOKENIZER

_LOOK = 64  # documents of a store that tell whether it has conversations
_ROWS = 128  # of the embedding and head that is taken from the stores: tiles of a TPU, and axes of a mesh


def complete(config: PretrainConfig, workdir: Path | None = None) -> PretrainConfig:
    """The config with the `vocab_size` that its first token store needs, where it has none; not less than that of `init_from`.

    A run that has saved in `workdir` keeps its own: it no longer needs what it started from. Raises StoreError where the store
    cannot be opened.
    """
    if config.model.vocab_size:
        return config
    saved = workdir and distributed.decide(
        lambda: saved_metadata(workdir / CHECKPOINTS), "looking for the run's own size"
    )
    if saved:
        wanted = saved["config"]["model"]["vocab_size"]
    else:
        size = Vocab.from_config(read_vocab(config.data.stores[0].path)).size
        wanted = -(-size // _ROWS) * _ROWS
        if (init := config.init_from) is not None:
            wanted = max(wanted, distributed.decide(lambda: initial.vocab_size(init), "reading the size to start from"))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=wanted))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainTask:
    """See `task.Task`. `vocab` is that of the token stores, by default read from the first of them when it is asked for."""

    config: PretrainConfig
    vocab: VocabConfig | None = None

    @functools.cached_property
    def table(self) -> VocabConfig:
        """The modality table. Raises StoreError where the first store cannot be opened."""
        return self.vocab or read_vocab(self.config.data.stores[0].path)

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.table.names

    @functools.cached_property
    def modality_weights(self) -> tuple[float, ...]:
        """Of each modality in the loss. Raises ConfigError for weights of a modality that there is not, or of nothing."""
        weights = self.table.by_row(self.config.loss.weights, (row.loss_weight for row in self.table.modalities))
        if not sum(weights):
            raise ConfigError("the weights of all modalities are 0 in the loss: nothing to learn")
        return weights

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.data.seq_len

    @property
    def flops_per_step(self) -> float:
        return self.tokens_per_step * transformer.flops_per_token(self.config.model, self.config.data.seq_len)

    def param_specs(self) -> dict[str, Any]:
        return transformer.param_specs(self.config.model)

    def open(self, workdir: Path, mesh: Mesh) -> StoreData:
        """Open stores and pack plans.

        Raises ConfigError and StoreError when config, mesh, stores and the memory of the devices do not fit together.
        """
        config = self.config
        check_fits(config.model, config.train.batch_size, config.train.microbatches, mesh)
        loader = Loader(
            config.data,
            config.train.batch_size,
            config.train.steps,
            rows=local_rows(mesh, config.train.batch_size),
        )
        size = Vocab.from_config(self.table).size
        if size > config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size {config.model.vocab_size} is smaller than the {size} ids of the token stores; set "
                f"TransformerConfig.vocab_size={size}"
            )
        if config.model.vocab_size > 2 * size and config.init_from is None:
            spare = 2 * (config.model.vocab_size - size) * config.model.d_model
            logging.warning(
                "model.vocab_size is %s for %s ids of the token stores: %s parameters that nothing trains; leave it out, and it "
                "follows the stores",
                f"{config.model.vocab_size:,}", f"{size:,}", f"{spare:,}",
            )  # fmt: skip
        warmup = config.optim.warmup_of(config.train.steps)
        if 2 * warmup > config.train.steps:
            logging.warning(
                "optim.warmup_steps is %d of %d steps, so the learning rate is low for most of the run; leave it out, and it is a "
                "tenth of the run", warmup, config.train.steps,
            )  # fmt: skip
        _ = self.modality_weights  # refuses names that the vocabulary does not have
        vocab = Vocab.from_config(loader.vocab_config)
        if problem := perception.problem(config.model, vocab):
            raise ConfigError(problem)
        if config.model.perception and loader.picture_size is None and config.init_from is None:
            raise ConfigError(
                "the model has an encoder of pictures, but the token stores hold none that it could learn from: tokenise with "
                "TokenizeConfig.image_input='patches', or start from weights that have learned it"
            )
        if loader.picture_size is not None:
            side = perception.picture_side(config.model, vocab)
            if loader.picture_size != (side, side):
                patches = vocab.perceived.grammar.length
                raise ConfigError(
                    f"{patches} patches of patch_size {config.model.perception.patch_size} make pictures of {side}x{side} "
                    f"pixels, the token stores have {'x'.join(map(str, loader.picture_size))}; set "
                    f"PatchEncoderConfig.patch_size={loader.picture_size[0] // math.isqrt(patches)}"
                )
        modalities = len(vocab.modalities)
        if config.model.untied and config.model.modalities != modalities:
            raise ConfigError(
                f"model.modalities is {config.model.modalities}, the vocabulary of the token stores has {modalities}; set "
                f"TransformerConfig.modalities={modalities}"
            )
        data = StoreData(loader=loader)
        memory.check(Recipe.of(self, config, data.row_names), mesh)
        return data

    def initial_params(self, data: StoreData, mesh: Mesh) -> dict[str, Any]:
        """The weights that `config.init_from` names, or values drawn from the seed; straight on the mesh."""
        config = self.config
        if config.init_from is not None:
            found = initial.initial_params(
                config.init_from, config.model, data.tokenizer, mesh, jax.random.key(config.train.seed)
            )
            logging.info(found.description)
            return found.params
        logging.info("starting from scratch, seed %d", config.train.seed)
        specs = self.param_specs()
        make = jax.jit(lambda key: params.initialise(key, specs), out_shardings=params.shardings(specs, mesh, TRAINING))
        with jax.set_mesh(mesh):
            return make(jax.random.key(config.train.seed))

    def loss(
        self, weights: dict[str, Any], batch: Batch, dropout_key: jax.Array | None, *, statistics: bool
    ) -> tuple[LossSums, Statistics | None]:
        config = self.config
        vocab = Vocab.from_config(self.table)
        seen = perception.inputs(weights, batch.tokens, batch.pictures, config.model, vocab)
        out = transformer.forward(
            weights,
            batch.tokens,
            batch.positions,
            batch.segment_ids,
            config.model,
            modality=batch.input_modality,
            **seen,
            dropout_key=dropout_key if config.model.dropout > 0 else None,
            statistics=statistics,
        )
        sums = losses.cross_entropy(
            out.hidden,
            weights["head"],
            batch.targets,
            batch.loss_weights,
            batch.modality,
            self.modality_weights,
            config.loss,
        )
        return sums, out.statistics

    def metrics(self, sums: LossSums) -> dict[str, float]:
        return telemetry.loss_metrics(sums, self.modalities)

    def evaluators(self, recipe: Recipe, data: StoreData, mesh: Mesh) -> Sequence[Evaluator]:
        """The loss on held-out rows, if the config names any."""
        train = self.config.train
        if not self.config.data.eval_stores:
            return ()
        evaluate = step_lib.compiled_eval_step(recipe, mesh)

        def held_out(weights: dict[str, Any]) -> Mapping[str, float]:
            sums = (evaluate(weights, to_global(b, mesh)) for b in data.loader.eval_batches(train.eval_batches))
            return self.metrics(jax.device_get(functools.reduce(LossSums.__add__, sums)))

        return (Evaluator(name="held-out", every_steps=train.eval_every, run=held_out),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreData:
    """The token stores of a run, opened; see `task.Data`."""

    loader: Loader

    @functools.cached_property
    def fingerprint(self) -> str:
        return self.loader.fingerprint()

    @property
    def metadata(self) -> Mapping[str, Any]:
        made = {"tokenizer": self.loader.bundle_fingerprint, "vocab_config": self.loader.vocab_config.to_dict()}
        return made | {"prompt": "chat" if self._has_turns else "completion"}

    @functools.cached_property
    def _has_turns(self) -> bool:
        """Whether a store has conversations, by its first documents: how people will want to prompt the model."""
        turn = Vocab.from_config(self.loader.vocab_config).end_of_turn
        stores = [opened.store for opened in self.loader.stores]
        return any((ids == turn).any() for store in stores for ids in store.read(range(min(_LOOK, store.documents))))

    @property
    def tokenizer(self) -> RunTokenizer:
        """What made the ids of the stores."""
        return RunTokenizer(
            fingerprint=self.loader.bundle_fingerprint,
            vocab=self.loader.vocab_config,
            folder=Path(self.loader.stores[0].config.path) / TOKENIZER,
        )

    @property
    def row_names(self) -> Mapping[str, Range]:
        """The ids of every modality, all ids that extensions added, and each of them by its own name.

        Those of text and of the first row with markers, as images, are content alone (Anole trains the codes); a row behind
        them has its markers too, without which a model that is given another modality would never begin one.
        """
        config = self.loader.vocab_config
        vocab = Vocab.from_config(config)
        first = vocab.size - len(config.added)
        names = {name: (first + i, first + i + 1) for i, name in enumerate(config.added)}
        names |= {"added": (first, vocab.size)} if config.added else {}
        rows = vocab.modalities
        return names | {row.name: (row.start, row.stop if row.start <= vocab.text.start else row.end) for row in rows}

    def keep(self, workdir: Path) -> None:
        """Keep the tokenizer with the weights: generation needs both, and stores may be deleted.

        Raises ConfigError when another tokenizer lies there.
        """
        source, kept = self.tokenizer.folder, workdir / TOKENIZER
        if jax.process_index() != 0 or not source.is_dir():
            return
        if kept.exists():
            theirs = TokenizerBundle.load(kept).fingerprint()
            if theirs != self.loader.bundle_fingerprint:
                raise ConfigError(
                    f"{kept} is tokenizer {theirs}, the token stores were made with {self.loader.bundle_fingerprint}: delete it or "
                    "choose another --workdir"
                )
            return
        held = TokenizerBundle.load(source).fingerprint()
        if held != self.loader.bundle_fingerprint:
            raise ConfigError(
                f"{source} is tokenizer {held}, but the tokens beside it were made with {self.loader.bundle_fingerprint}: put the "
                "right one there"
            )
        with new_folder(kept) as unfinished:
            shutil.copytree(source, unfinished, dirs_exist_ok=True)

    def batches(self, start: int, count: int) -> Iterator[Batch]:
        return self.loader.batches(start, start + count)
