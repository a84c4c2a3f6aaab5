"""The training loop: compile, train, evaluate, log, save, resume; readable from top to bottom.

The one idea: the loop only moves things. Batch k comes from the loader by its number, the step is one jitted function, metrics of a
step are read while the next one runs, and the checkpoint's step number is all that a resumption needs.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from chameleon_jax import cli
from chameleon_jax.configs import PretrainConfig
from chameleon_jax.data.loader import Loader
from chameleon_jax.errors import CheckpointError, ConfigError
from chameleon_jax.models import params, transformer
from chameleon_jax.parallel import distributed
from chameleon_jax.parallel.mesh import check_fits, make_mesh
from chameleon_jax.training import state as state_lib
from chameleon_jax.training import step as step_lib
from chameleon_jax.training import telemetry
from chameleon_jax.training.checkpoint import Checkpointer
from chameleon_jax.training.signals import StopRequest
from chameleon_jax.training.state import TrainState
from chameleon_jax.training.step import StepMetrics
from chameleon_jax.training.workdir import check_resume, open_workdir, write_run_files

CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"  # the run's own copy of its tokenizer bundle


@dataclasses.dataclass(frozen=True)
class _Interval:
    """Wall-clock seconds of the steps since the last log line, and how much of them waited for data."""

    seconds: float
    data_wait: float
    steps: int


def pretrain(config: PretrainConfig, workdir: str, gin_text: dict[str, str] | None = None) -> int:
    """Train, or go on training, in `workdir`; returns the exit code (0 done, 75 stopped by a signal and saved).

    Raises ConfigError, StoreError or CheckpointError before anything is compiled when config, data, mesh and checkpoint do not fit.
    """
    path = Path(workdir)
    with open_workdir(path), StopRequest() as stop:
        mesh = make_mesh(config.mesh)
        check_fits(config.model, config.train.batch_size, config.train.microbatches, mesh)
        loader = Loader(
            config.data,
            config.train.batch_size,
            config.train.steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        if loader.vocab_config.size > config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size {config.model.vocab_size} is smaller than the {loader.vocab_config.size} ids of the "
                f"token stores; set TransformerConfig.vocab_size={loader.vocab_config.size}"
            )
        checkpointer = Checkpointer(path / CHECKPOINTS, config.checkpoint)
        train_state, start = _restore_or_initialise(checkpointer, config, loader, mesh)
        write_run_files(path, config, gin_text or {}, mesh)
        _copy_tokenizer(config, path)
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
    peak = train.peak_flops or telemetry.peak_flops(jax.local_devices()[0])
    console = telemetry.Console(steps)
    metadata = _metadata(config, loader)
    pending: tuple[int, StepMetrics, _Interval] | None = None
    waited, last_logged, last_time = 0.0, start, time.perf_counter()

    def log(step: int, metrics: StepMetrics, interval: _Interval) -> None:
        values = telemetry.step_metrics(jax.device_get(metrics))
        values |= _speed(config, interval, step, peak)
        writer.write(step, values)
        if jax.process_index() == 0:
            logging.info(console.line(step, values))
        if not config.optim.skip_nonfinite and not values["norm/gradient"] < float("inf"):
            raise CheckpointError(
                f"step {step}: loss or gradient is not finite; the newest checkpoint is older: lower the learning rate, "
                "or set OptimConfig.skip_nonfinite=True to skip such steps"
            )

    # Any transfer between host and devices that is not asked for by name is a bug that costs speed.
    with jax.transfer_guard("disallow"):
        batches = _timed(loader.batches(start, steps))
        step = start
        for step, (batch, wait) in enumerate(batches, start + 1):
            waited += wait
            train_state, metrics = train_step(train_state, distributed.to_global(batch, mesh))
            if step == start + 1:  # compiling is not the speed of training
                jax.block_until_ready(metrics)
                waited, last_time = 0.0, time.perf_counter()
            if pending is not None:
                log(*pending)
                pending = None
            if step % train.log_every == 0 or step in (start + 1, steps):
                now = time.perf_counter()
                pending = (step, metrics, _Interval(now - last_time, waited, step - last_logged))
                waited, last_logged, last_time = 0.0, step, now
            if config.data.eval_stores and (step % train.eval_every == 0 or step == steps):
                _evaluate(eval_step, train_state, loader, mesh, config, writer, step)
                last_time = time.perf_counter()
            stopping = distributed.agree(stop.requested)
            if step % config.checkpoint.every_steps == 0 or step == steps or stopping:
                with jax.transfer_guard("allow"):
                    checkpointer.save(step, train_state, metadata)
            if stopping:
                break
        if pending is not None:
            log(*pending)
        with jax.transfer_guard("allow"):
            checkpointer.wait()
    if step < steps:
        logging.info("stopped at step %d of %d, saved; run the same command to go on", step, steps)
        return cli.EXIT_STOPPED
    return 0


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
        sums = eval_step(train_state.params, distributed.to_global(batch, mesh))
        total = sums if total is None else jax.tree.map(lambda x: x, total + sums)
    if total is None:
        return
    values = telemetry.loss_metrics(jax.device_get(total), prefix="eval/")
    writer.write(step, values)
    if jax.process_index() == 0:
        losses = ", ".join(f"{k.removeprefix('eval/')} {v:.4f}" for k, v in values.items() if k.startswith("eval/loss"))
        logging.info("step %d  held-out %s", step, losses)


def _speed(config: PretrainConfig, interval: _Interval, step: int, peak: float) -> dict[str, float]:
    """tokens/s, model FLOPs utilisation (formula: transformer.flops_per_token), data wait and time left."""
    if interval.seconds <= 0 or interval.steps <= 0:
        return {"tokens_per_second": 0.0, "mfu": 0.0, "data_wait_fraction": 0.0, "step_seconds": 0.0, "eta_seconds": 0.0}
    seconds = interval.seconds / interval.steps
    tokens = config.train.batch_size * config.data.seq_len / seconds
    flops = tokens * transformer.flops_per_token(config.model, config.data.seq_len)
    return {
        "tokens_per_second": tokens,
        "mfu": flops / (peak * jax.device_count()),
        "data_wait_fraction": interval.data_wait / interval.seconds,
        "step_seconds": seconds,
        "eta_seconds": (config.train.steps - step) * seconds,
    }


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
    restored = checkpointer.restore(state_lib.abstract(config, mesh))
    if restored is None:
        return state_lib.initialise(config, mesh), 0
    check_resume(restored.metadata["config"], config)
    if restored.metadata["data_fingerprint"] != loader.fingerprint():
        raise CheckpointError(
            f"the data changed since step {restored.step}: fingerprint {restored.metadata['data_fingerprint']} then, "
            f"{loader.fingerprint()} now; use the same token stores or a new workdir"
        )
    logging.info("resuming from step %d", restored.step)
    return restored.state, restored.step


def _copy_tokenizer(config: PretrainConfig, path: Path) -> None:
    """Keep the tokenizer with the weights: generation needs both, and stores may be deleted."""
    source = Path(config.data.stores[0].path) / TOKENIZER
    if jax.process_index() == 0 and source.is_dir() and not (path / TOKENIZER).exists():
        temporary = path / f".{TOKENIZER}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        temporary.replace(path / TOKENIZER)


def _summary(config: PretrainConfig, loader: Loader, mesh: jax.sharding.Mesh, start: int) -> str:
    count = params.count(transformer.param_specs(config.model))
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    tokens = config.train.batch_size * config.data.seq_len
    return (
        f"{count:,} parameters on {mesh.size} {mesh.devices.flat[0].device_kind} device(s) ({axes}); "
        f"{tokens:,} tokens a step, steps {start + 1} to {config.train.steps}; data {loader.fingerprint()}"
    )
