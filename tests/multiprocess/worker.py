"""What one process of a test does: a list of jobs from a JSON file, in one start of JAX. Results go to a JSON file."""

import argparse
import contextlib
import hashlib
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np

from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.configs import CheckpointConfig, PretrainConfig, text_and_image
from chameleon_jax.data.loader import Loader
from chameleon_jax.errors import CheckpointError
from chameleon_jax.parallel import distributed
from chameleon_jax.parallel.batches import local_rows, to_global
from chameleon_jax.parallel.mesh import make_mesh
from chameleon_jax.training import state as state_lib
from chameleon_jax.training.loop import Rollback, pretrain
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe


def train(config, workdir):
    """The real loop in one workdir."""
    return pretrain(config, workdir)


def batches(config, workdir):
    """Hashes of the rows of the global batches, by step and row, as they lie on this process's devices."""
    mesh, size = make_mesh(config.mesh), config.train.batch_size
    loader = Loader(config.data, size, config.train.steps, rows=local_rows(mesh, size))
    found = {}
    for step in range(config.train.steps):
        batch = to_global(loader.host_batch(step), mesh)
        for shards in zip(*(leaf.addressable_shards for leaf in jax.tree.leaves(batch)), strict=True):
            first = shards[0].index[0].start or 0
            for row in range(shards[0].data.shape[0]):
                digest = hashlib.sha256(b"".join(np.asarray(shard.data)[row].tobytes() for shard in shards)).hexdigest()
                found.setdefault(f"{step}/{first + row}", set()).add(digest)
    return {key: sorted(digests) for key, digests in found.items()}


def roll_back(config, workdir):
    """The real loop, back from step 8 to step 4 and on again."""
    return pretrain(config, workdir, rollback=Rollback(step=4))


def restore(config, workdir):
    """What the verification of a damaged step says, and which good one is then taken."""
    checkpointer = Checkpointer(Path(workdir) / "checkpoints", CheckpointConfig())
    abstract = state_lib.abstract(
        Recipe.of(PretrainTask(config=config, vocab=text_and_image()), config), make_mesh(config.mesh)
    )
    try:
        checkpointer.restore(abstract, step=8)
        return "restored"
    except CheckpointError as error:
        return [str(error), checkpointer.restore(abstract).step]


def die_in_a_save(config, workdir):
    """The real loop; process 1 is killed in its part of the first save, when process 0 may wait in a joint operation of it."""
    from chameleon_jax.checkpoints import manifest

    if jax.process_index() == 1:
        manifest.host_regions = lambda named: os.kill(os.getpid(), signal.SIGKILL)
    return pretrain(config, workdir)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=Path)
    parser.add_argument("--coordinator")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int, default=0)
    args = parser.parse_args()
    by_hand = (args.coordinator, args.num_processes, args.process_id)
    with distributed.join(*by_hand) if args.num_processes else contextlib.nullcontext():
        results = [
            globals()[job["do"]](PretrainConfig.from_dict(job["config"]), job["workdir"])
            for job in json.loads(args.jobs.read_text())
        ]
        args.jobs.with_suffix(f".result-{args.process_id}").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
