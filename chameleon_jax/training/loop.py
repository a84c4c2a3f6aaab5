"""The training loop: compile, train, evaluate, log, save, resume; readable from top to bottom.

The loop only moves things. Batches come from the task by position, the step is a jitted function in two variants, with statistics
for logged steps and without, its metrics are read while the next one runs, and the checkpoint says where to go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.configs import PretrainConfig, RunConfig
from chameleon_jax.errors import ChameleonError, CheckpointError, TrainingError
from chameleon_jax.models import params
from chameleon_jax.parallel.agreement import StopAgreement
from chameleon_jax.parallel.batches import to_global
from chameleon_jax.parallel.mesh import TRAINING, make_mesh
from chameleon_jax.training import rollback as rollback_lib
from chameleon_jax.training import state as state_lib
from chameleon_jax.training import step as step_lib
from chameleon_jax.training import telemetry
from chameleon_jax.training.pretraining import PretrainTask, complete
from chameleon_jax.training.rollback import Rollback
from chameleon_jax.training.samples import Sampler, held_here
from chameleon_jax.training.signals import EXIT_STOPPED, StopRequest
from chameleon_jax.training.state import TrainState
from chameleon_jax.training.step import StepMetrics
from chameleon_jax.training.task import Data, Evaluator, Recipe, Task
from chameleon_jax.workdir import CHECKPOINTS, RUN, check_resume, open_workdir, require_kind, write_run_files


def pretrain(
    config: PretrainConfig,
    workdir: str,
    gin_text: Mapping[str, str] | None = None,
    rollback: Rollback | None = None,
    sampler: Sampler | None = None,
) -> int:
    """`train` with the pretraining task; a `vocab_size` that the config leaves open is that of the token stores."""
    config = complete(config, Path(workdir))
    return train(PretrainTask(config=config), config, workdir, gin_text=gin_text, rollback=rollback, sampler=sampler)


def train(
    task: Task,
    config: RunConfig,
    workdir: str,
    *,
    gin_text: Mapping[str, str] | None = None,
    rollback: Rollback | None = None,
    sampler: Sampler | None = None,
) -> int:
    """Train, or go on training, in `workdir`; returns the exit code (0 done, 75 stopped by a signal and saved).

    `sampler` is called after every `config.train.sample_every` steps and after the last, and changes nothing of the run.

    Raises ConfigError, StoreError or CheckpointError, before anything is compiled, when config, data, mesh and checkpoint do
    not fit together.
    """
    path = Path(workdir)
    require_kind(path, RUN)
    with open_workdir(path, jax.process_index()), StopRequest() as stop:
        mesh = make_mesh(config.mesh)
        data = task.open(path, mesh)
        recipe = Recipe.of(task, config, data.row_names)
        checkpointer = Checkpointer(path / CHECKPOINTS, config.checkpoint)
        train_state, start = _begin(path, checkpointer, recipe, data, mesh, rollback)
        checkpointer.tidy()
        data.keep(path)
        write_run_files(path, config, gin_text, params.sharding_table(task.param_specs(), mesh, TRAINING))
        if start >= config.train.steps:
            logging.info("all %d steps are done; nothing to do", config.train.steps)
            return 0
        logging.info(_summary(recipe, data, mesh, start))
        writer = telemetry.MetricWriter(path, resume_step=start, run_config=config.to_dict())
        run = _Run(recipe, mesh, data, checkpointer, writer, stop, rollback_lib.last(path), sampler)
        with contextlib.ExitStack() as closing, jax.set_mesh(mesh):
            closing.callback(checkpointer.close)
            closing.callback(writer.close)
            return run.go(train_state, start)


class _Run:
    """What stays the same from the first step of this process to its last."""

    def __init__(
        self,
        recipe: Recipe,
        mesh: jax.sharding.Mesh,
        data: Data,
        checkpointer: Checkpointer,
        writer: telemetry.MetricWriter,
        stop: StopRequest,
        last_rollback: Rollback | None,
        sampler: Sampler | None,
    ):
        self._sampler = sampler if recipe.config.train.sample_every else None
        self._recipe, self._mesh, self._data = recipe, mesh, data
        self._checkpointer, self._writer, self._stop = checkpointer, writer, stop
        self._metadata = {
            "config": recipe.config.to_dict(),
            "data_fingerprint": data.fingerprint,
            "rollback": last_rollback and dataclasses.asdict(last_rollback),
            **data.metadata,
        }

    def go(self, train_state: TrainState, start: int) -> int:
        config, mesh = self._recipe.config, self._mesh
        steps = config.train.steps
        train_step = {
            logged: step_lib.compiled_train_step(self._recipe, mesh, statistics=logged) for logged in (False, True)
        }
        evaluators = self._recipe.task.evaluators(self._recipe, self._data, mesh)
        report = _Report(self._recipe, self._writer, start)
        position = int(jax.device_get(train_state.position))
        agreement = StopAgreement(mesh, lambda: self._stop.requested)
        step, stopping, compiled = start, False, set()
        # Any transfer between host and devices that is not asked for by name is a bug that costs speed.
        with jax.transfer_guard("disallow"):
            if start == 0 and config.init_from is not None:  # what the weights can do before they are trained on
                self._evaluate(evaluators, train_state, 0)
            batches = _timed(self._data.batches(position, steps - start))
            for step, (batch, waited) in enumerate(batches, start + 1):
                report.waited(waited)
                begin, variant = time.perf_counter(), report.has_statistics(step)
                train_state, metrics = train_step[variant](train_state, to_global(batch, mesh))
                if variant not in compiled:  # calls return at once, but for the first, which compiles
                    compiled.add(variant)
                    report.leave_out(time.perf_counter() - begin)
                report.read_pending()
                report.add(step, metrics)
                if due := [evaluator for evaluator in evaluators if evaluator.is_due(step, steps)]:
                    report.read_pending()
                    self._evaluate(due, train_state, step)
                    report.restart_clock(step)
                stopping = agreement.poll()
                if step % config.checkpoint.every_steps == 0 or step == steps or stopping:
                    report.read_pending()  # a step that can be resumed from has its line in the log
                    with jax.transfer_guard("allow"):
                        self._checkpointer.save(step, train_state, self._metadata)
                if self._sampler and (step % config.train.sample_every == 0 or step == steps):
                    report.read_pending()
                    self._sample(train_state, step)  # after the state is saved: what goes wrong here costs no step
                    report.restart_clock(step)
                if stopping:
                    break
            report.read_pending()
            with jax.transfer_guard("allow"):
                self._checkpointer.wait()
        if step < steps:
            logging.info("stopped at step %d of %d, saved; run the same command to go on", step, steps)
            return EXIT_STOPPED
        return 0

    def _evaluate(self, evaluators: Sequence[Evaluator], train_state: TrainState, step: int) -> None:
        for evaluator in evaluators:
            found = evaluator.run(train_state.params)
            self._writer.write(step, {f"eval/{name}": value for name, value in found.items()})
            if jax.process_index() == 0:
                losses = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if name.startswith("loss"))
                logging.info("step %d  %s %s", step, evaluator.name, losses)

    def _sample(self, train_state: TrainState, step: int) -> None:
        """Only where metrics are written; the other processes are at their next step meanwhile. A failure costs the page alone."""
        if jax.process_index() != 0:
            return
        held = held_here(train_state.params)
        if held is None:
            logging.info("no samples during this run: process 0 does not hold all parameters; use experiments.generate")
            self._sampler = None
            return
        try:
            with jax.transfer_guard("allow"):
                path = self._writer.write_samples(step, self._sampler(held, step))
            logging.info("step %d  samples %s", step, path)
        except Exception as error:  # as a device without room for a cache
            told = str(error) if isinstance(error, ChameleonError) else f"{type(error).__name__}: {error}"
            logging.warning("step %d: no samples: %s", step, told)


class _Report:
    """Keeps a logged step's metrics on the device until the next step runs, then writes them with the speed between log lines."""

    def __init__(self, recipe: Recipe, writer: telemetry.MetricWriter, start: int):
        self._recipe, self._config, self._writer = recipe, recipe.config, writer
        self._peak = self._config.train.peak_flops or telemetry.peak_flops(jax.local_devices()[0])
        self._console = telemetry.Console(self._config.train.steps)
        self._pending: tuple[int, StepMetrics] | None = None
        self._first, self._waited, self._last_step, self._clock = start + 1, 0.0, start, 0.0

    def has_statistics(self, step: int) -> bool:
        """A function of the step and `log_every`: the two variants of a step may differ by rounding, and a resumed run must not."""
        train = self._config.train
        return step % train.log_every == 0 or step in (1, train.steps)

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def add(self, step: int, metrics: StepMetrics) -> None:
        # A state that may be broken is not saved unseen.
        unseen = not self._config.optim.skip_nonfinite and step % self._config.checkpoint.every_steps == 0
        if self.has_statistics(step) or step == self._first or unseen:
            self._pending = (step, metrics)

    def read_pending(self) -> None:
        """Write the step that waits to be logged; its arrays are ready, or nearly."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        metrics = jax.device_get(metrics)
        values = telemetry.step_metrics(metrics, self._recipe.task.metrics(metrics.sums), self._recipe.task.modalities)
        if step != self._first:  # the first step's time is that of compiling
            values |= telemetry.speed(
                self._recipe.task,
                steps=step - self._last_step,
                left=self._config.train.steps - step,
                seconds=time.perf_counter() - self._clock,
                waited=self._waited,
                peak=self._peak,
            )
        self.restart_clock(step)
        self._writer.write(step, values)
        if jax.process_index() == 0:
            logging.info(self._console.line(step, values))
        if not self._config.optim.skip_nonfinite and not math.isfinite(values["norm/gradient"]):
            raise TrainingError(
                f"step {step}: loss or gradient is not finite; lower the learning rate, "
                "or set OptimConfig.skip_nonfinite=True to skip such steps"
            )

    def leave_out(self, seconds: float) -> None:
        """Count these as no time of the steps since the last log line."""
        self._clock += seconds

    def restart_clock(self, step: int) -> None:
        """Measure speed from the end of `step` on."""
        self._last_step, self._clock, self._waited = step, time.perf_counter(), 0.0


def _timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        begin = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.perf_counter() - begin


def _begin(
    path: Path, checkpointer: Checkpointer, recipe: Recipe, data: Data, mesh: jax.sharding.Mesh, wanted: Rollback | None
) -> tuple[TrainState, int]:
    """The state to go on from and its step: 1. this run's own checkpoint, 2. the task's initial parameters."""
    newest = checkpointer.metadata()
    if newest is not None:  # before the arrays are looked at, so that a changed field is named rather than a shape
        check_resume(newest["config"], recipe.config)
    done = rollback_lib.last(path)
    abstract = state_lib.abstract(recipe, mesh)
    goes_back = wanted is not None and wanted != done
    restored = checkpointer.restore(abstract, wanted.step if goes_back else None)
    if restored is None:
        return state_lib.initialise(recipe.task.initial_params(data, mesh), recipe, mesh), 0
    if restored.metadata["data_fingerprint"] != data.fingerprint:
        raise CheckpointError(
            f"the data changed since step {restored.step}: fingerprint {restored.metadata['data_fingerprint']} then, "
            f"{data.fingerprint} now; use the same token stores or a new workdir"
        )
    if goes_back:
        gone = checkpointer.discard_after(restored.step)
        rollback_lib.record(path, wanted)
        logging.info(
            "back to step %d; deleted the later steps %s", restored.step, ", ".join(map(str, gone)) or "(none)"
        )
        done = wanted
    else:
        again = " (the rollback asked for was done before)" if wanted is not None else ""
        logging.info("resuming from step %d%s", restored.step, again)
    knows = done is None or restored.metadata.get("rollback") == dataclasses.asdict(done)
    if knows or done.step != restored.step or not done.skip_batches:
        return restored.state, restored.step
    # Saved before the rollback, so it does not know of the batches to pass over.
    position = int(jax.device_get(restored.state.position)) + done.skip_batches
    logging.info("passing over %d batches: going on with batch %d", done.skip_batches, position)
    moved = jax.device_put(np.int32(position), restored.state.position.sharding)
    return restored.state.replace(position=moved), restored.step


def _summary(recipe: Recipe, data: Data, mesh: jax.sharding.Mesh, start: int) -> str:
    task, trainable = recipe.task, recipe.trainable
    count, trained = params.count(trainable.specs), params.count(trainable.selected_specs())
    part = "" if trained == count else f", {trained:,} of them trained,"
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return (
        f"{count:,} parameters{part} on {mesh.size} {mesh.devices.flat[0].device_kind} device(s) ({axes}); "
        f"{task.tokens_per_step:,} tokens a step, steps {start + 1} to {recipe.config.train.steps}; data {data.fingerprint}"
    )
