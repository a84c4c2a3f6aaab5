"""What a training run is given: a task, which knows parameters, data and loss, and nothing of optimizer, checkpoints or logs.

`training.loop.train(task, config, workdir)` does the rest, so another kind of training is another task and no other loop.
`training.pretraining` is the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from chameleon_jax.checkpoints.manifest import named_leaves
from chameleon_jax.configs import RunConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.models.statistics import Statistics
from chameleon_jax.training import optim
from chameleon_jax.training.trainable import Range, Trainable, Tree, choose


class Sums(Protocol):
    """Sums over the tokens of a batch. The loss is objective / normaliser over the global batch; `objective` alone has a gradient.

    `weight` counts trained targets by modality. `joined` makes the sums of a whole from those of its parts along the first axis.
    """

    objective: Float[Array, ""]
    normaliser: Float[Array, ""]
    weight: Float[Array, "m"]

    def joined(self) -> Self: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measured with the parameters after every `every_steps` steps and after the last; `run` returns named numbers.

    Where a run starts from given weights it is measured before the first step too.
    """

    name: str
    every_steps: int
    run: Callable[[Tree], Mapping[str, float]]

    def is_due(self, step: int, last: int) -> bool:
        return step % self.every_steps == 0 or step == last


class Data(Protocol):
    """The opened data of a task, on this process.

    `fingerprint` tells two training streams apart, `metadata` is kept with every checkpoint, `row_names` are the id ranges of the
    vocabulary that have a name.
    """

    fingerprint: str
    metadata: Mapping[str, Any]
    row_names: Mapping[str, Range]

    def keep(self, workdir: Path) -> None:
        """Copy into the workdir what the weights need; called when all checks have passed."""

    def batches(self, start: int, count: int) -> Iterator[Any]:
        """`count` batches from position `start` on; each a pytree of this process's rows as NumPy arrays [rows, ...]."""


class Task(Protocol):
    """Pure functions of parameters and batches, and where both come from."""

    tokens_per_step: int
    flops_per_step: float
    modalities: tuple[str, ...]  # by which targets are counted

    def param_specs(self) -> Tree:
        """ParamSpecs of everything that `loss` is given."""

    def open(self, workdir: Path, mesh: Mesh) -> Data:
        """Open the data and check that it fits. Raises ChameleonError before anything is compiled."""

    def initial_params(self, data: Data, mesh: Mesh) -> Tree:
        """Parameters to begin with, on the mesh, where the workdir has no checkpoint."""

    def loss(
        self, params: Tree, batch: Any, dropout_key: jax.Array | None, *, statistics: bool
    ) -> tuple[Sums, Statistics | None]:
        """Sums of the rows in `batch`, and per-layer statistics if they are asked for and the task has any.

        On a mesh the rows are those of one shard, and so are the parameters: `models.params.gathered` makes them whole, and without
        it their gradients would not be summed. `dropout_key` has one key for each row.
        """

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Named means from sums on the host; "loss" is among them."""

    def evaluators(self, recipe: Recipe, data: Data, mesh: Mesh) -> Sequence[Evaluator]:
        """What is measured during the run; made once, with the mesh in use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a compiled step depends on beside the mesh."""

    task: Task
    config: RunConfig
    trainable: Trainable

    @classmethod
    def of(cls, task: Task, config: RunConfig, row_names: Mapping[str, Range] | None = None) -> Recipe:
        """The recipe with what `config.trainable` asks for.

        Raises ConfigError when that is not there, and for trained parameters in bfloat16: an update of less than 1/256 of a weight
        would be lost.
        """
        trainable = choose(config.trainable, task.param_specs(), row_names or {})
        for path, spec in named_leaves(trainable.selected_specs()).items():
            if spec.dtype != "float32":
                raise ConfigError(
                    f"'{path}' is {spec.dtype} and trained: small updates would be lost; set param_dtype='float32' (products run "
                    "in compute_dtype all the same)"
                )
        return cls(task=task, config=config, trainable=trainable)

    def optimizer(self) -> optax.GradientTransformation:
        """Directions for the trained part; the step multiplies them by its learning rate."""
        return optim.directions(self.config.optim, self.trainable.selected_specs())
