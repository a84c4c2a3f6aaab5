"""The training loop: compile, train, evaluate, log, save, resume; readable from top to bottom.

The one idea: the loop only moves things. Batch k comes from the loader by its number, the step is one jitted function, its
metrics are read while the next one runs, and the checkpoint's step number is all that a resumption needs.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from chameleon_jax.configs import DataConfig, PretrainConfig
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.store_format import TOKENIZER
from chameleon_jax.errors import CheckpointError, ConfigError, TrainingError
from chameleon_jax.files import new_folder
from chameleon_jax.models import params, transformer
from chameleon_jax.parallel.agreement import StopAgreement
from chameleon_jax.parallel.batches import local_rows, to_global
from chameleon_jax.parallel.mesh import check_fits, make_mesh
from chameleon_jax.training import state as state_lib
from chameleon_jax.training import step as step_lib
from chameleon_jax.training import telemetry
from chameleon_jax.training.checkpoint import Checkpointer
from chameleon_jax.training.signals import EXIT_STOPPED, StopRequest
from chameleon_jax.training.state import TrainState
from chameleon_jax.training.step import StepMetrics
from chameleon_jax.training.workdir import check_resume, open_workdir, write_run_files

CHECKPOINTS = "checkpoints"


def pretrain(config: PretrainConfig, workdir: str, gin_text: dict[str, str] | None = None) -> int:
    """Train, or go on training, in `workdir`; returns the exit code (0 done, 75 stopped by a signal and saved).

    Raises ConfigError, StoreError or CheckpointError, before anything is compiled, when config, data, mesh and checkpoint do
    not fit together.
    """
    path = Path(workdir)
    with open_workdir(path, jax.process_index()), StopRequest() as stop:
        mesh = make_mesh(config.mesh)
        check_fits(config.model, config.train.batch_size, config.train.microbatches, mesh)
        data = _in_workdir(config.data, path)
        loader = Loader(
            data,
            config.train.batch_size,
            config.train.steps,
            rows=local_rows(mesh, config.train.batch_size),
        )
        if loader.vocab_config.size > config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size {config.model.vocab_size} is smaller than the {loader.vocab_config.size} ids of the "
                f"token stores; set TransformerConfig.vocab_size={loader.vocab_config.size}"
            )
        checkpointer = Checkpointer(path / CHECKPOINTS, config.checkpoint)
        train_state, start = _restore_or_initialise(checkpointer, config, loader, mesh)
        write_run_files(path, config, gin_text or {}, mesh)
        _copy_tokenizer(data, path)
        if start >= config.train.steps:
            logging.info("all %d steps are done; nothing to do", config.train.steps)
            return 0
        logging.info(_summary(config, loader, mesh, start))
        writer = telemetry.MetricWriter(path, resume_step=start, run_config=config.to_dict())
        try:
            with jax.set_mesh(mesh):
                return _run(config, mesh, loader, checkpointer, writer, train_state, start, stop)
        finally:
            writer.close()
            checkpointer.close()


def _run(
    config: PretrainConfig,
    mesh: jax.sharding.Mesh,
    loader: Loader,
    checkpointer: Checkpointer,
    writer: telemetry.MetricWriter,
    train_state: TrainState,
    start: int,
    stop: StopRequest,
) -> int:
    train, steps = config.train, config.train.steps
    train_step = step_lib.compiled_train_step(config, mesh)
    eval_step = step_lib.compiled_eval_step(config, mesh)
    report = _Report(config, writer, start)
    metadata = _metadata(config, loader)
    agreement = StopAgreement(mesh, lambda: stop.requested)
    step, stopping = start, False
    # Any transfer between host and devices that is not asked for by name is a bug that costs speed.
    with jax.transfer_guard("disallow"):
        for step, (batch, waited) in enumerate(_timed(loader.batches(start, steps)), start + 1):
            train_state, metrics = train_step(train_state, to_global(batch, mesh))
            report.read_pending()
            report.add(step, metrics, waited)
            if config.data.eval_stores and (step % train.eval_every == 0 or step == steps):
                report.read_pending()
                _evaluate(eval_step, train_state, loader, mesh, config, writer, step)
                report.restart_clock()
            stopping = agreement.poll()
            if step % config.checkpoint.every_steps == 0 or step == steps or stopping:
                report.read_pending()  # a step that can be resumed from has its line in the log
                with jax.transfer_guard("allow"):
                    checkpointer.save(step, train_state, metadata)
            if stopping:
                break
        report.read_pending()
        with jax.transfer_guard("allow"):
            checkpointer.wait()
    if step < steps:
        logging.info("stopped at step %d of %d, saved; run the same command to go on", step, steps)
        return EXIT_STOPPED
    return 0


class _Report:
    """Keeps a logged step's metrics on the device until the next step runs, then writes them with the speed between log lines."""

    def __init__(self, config: PretrainConfig, writer: telemetry.MetricWriter, start: int):
        self._config, self._writer = config, writer
        self._console = telemetry.Console(config.train.steps)
        self._peak = config.train.peak_flops or telemetry.peak_flops(jax.local_devices()[0])
        self._pending: tuple[int, StepMetrics] | None = None
        self._first, self._waited, self._last_step, self._clock = start + 1, 0.0, start, 0.0

    def add(self, step: int, metrics: StepMetrics, waited: float) -> None:
        self._waited += waited
        train = self._config.train
        if step % train.log_every == 0 or step in (self._first, train.steps):
            self._pending = (step, metrics)

    def read_pending(self) -> None:
        """Write the step that waits to be logged; its arrays are ready, or nearly."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = telemetry.step_metrics(jax.device_get(metrics))
        if step != self._first:  # the first step's time is that of compiling
            seconds = time.perf_counter() - self._clock
            values |= telemetry.speed(self._config, step, step - self._last_step, seconds, self._waited, self._peak)
        self._last_step = step
        self.restart_clock()
        self._writer.write(step, values)
        if jax.process_index() == 0:
            logging.info(self._console.line(step, values))
        if not self._config.optim.skip_nonfinite and not math.isfinite(values["norm/gradient"]):
            raise TrainingError(
                f"step {step}: loss or gradient is not finite; lower the learning rate, "
                "or set OptimConfig.skip_nonfinite=True to skip such steps"
            )

    def restart_clock(self) -> None:
        self._clock, self._waited = time.perf_counter(), 0.0


def _timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        begin = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.perf_counter() - begin


def _evaluate(eval_step, train_state, loader, mesh, config, writer, step) -> None:
    total = None
    for batch in loader.eval_batches(config.train.eval_batches):
        sums = eval_step(train_state.params, to_global(batch, mesh))
        total = sums if total is None else total + sums
    if total is None:
        return
    values = telemetry.loss_metrics(jax.device_get(total), prefix="eval/")
    writer.write(step, values)
    if jax.process_index() == 0:
        losses = ", ".join(f"{k.removeprefix('eval/')} {v:.4f}" for k, v in values.items() if k.startswith("eval/loss"))
        logging.info("step %d  held-out %s", step, losses)


def _metadata(config: PretrainConfig, loader: Loader) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "data_fingerprint": loader.fingerprint(),
        "vocab_config": loader.vocab_config.to_dict(),
    }


def _restore_or_initialise(
    checkpointer: Checkpointer, config: PretrainConfig, loader: Loader, mesh: jax.sharding.Mesh
) -> tuple[TrainState, int]:
    """The newest verified checkpoint if it belongs to this run, else a fresh state; and its step."""
    newest = checkpointer.metadata()
    if newest is not None:  # before the arrays are looked at, so that a changed field is named rather than a shape
        check_resume(newest["config"], config)
    restored = checkpointer.restore(state_lib.abstract(config, mesh))
    if restored is None:
        return state_lib.initialise(config, mesh), 0
    if restored.metadata["data_fingerprint"] != loader.fingerprint():
        raise CheckpointError(
            f"the data changed since step {restored.step}: fingerprint {restored.metadata['data_fingerprint']} then, "
            f"{loader.fingerprint()} now; use the same token stores or a new workdir"
        )
    logging.info("resuming from step %d", restored.step)
    return restored.state, restored.step


def _in_workdir(data: DataConfig, path: Path) -> DataConfig:
    """Fill in `{workdir}`; the recorded config keeps the placeholder, so a run can be moved."""

    def fill(stores):
        return tuple(dataclasses.replace(s, path=s.path.replace("{workdir}", str(path))) for s in stores)

    return dataclasses.replace(data, stores=fill(data.stores), eval_stores=fill(data.eval_stores))


def _copy_tokenizer(data: DataConfig, path: Path) -> None:
    """Keep the tokenizer with the weights: generation needs both, and stores may be deleted."""
    source = Path(data.stores[0].path) / TOKENIZER
    if jax.process_index() == 0 and source.is_dir() and not (path / TOKENIZER).exists():
        with new_folder(path / TOKENIZER) as unfinished:
            shutil.copytree(source, unfinished, dirs_exist_ok=True)


def _summary(config: PretrainConfig, loader: Loader, mesh: jax.sharding.Mesh, start: int) -> str:
    count = params.count(transformer.param_specs(config.model))
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    tokens = config.train.batch_size * config.data.seq_len
    return (
        f"{count:,} parameters on {mesh.size} {mesh.devices.flat[0].device_kind} device(s) ({axes}); "
        f"{tokens:,} tokens a step, steps {start + 1} to {config.train.steps}; data {loader.fingerprint()}"
    )
