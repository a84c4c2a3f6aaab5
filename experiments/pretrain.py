"""Pretrain a mixed-modal transformer on token stores; run the same command again to resume.

Examples:
  python -m experiments.digits --stores --workdir=runs/smoke/data       # data of the next command: a run of half a minute
  python -m experiments.pretrain --gin_file=gin_configs/runs/smoke.gin --workdir=runs/smoke/model
  python -m experiments.pretrain --gin_file=gin_configs/runs/emoji.gin --gin.TRAIN=runs/emoji/store/train \\
      --gin.TrainConfig.steps=200 --workdir=runs/emoji/model
  python -m experiments.pretrain --gin_file=my_run.gin --workdir=runs/mine/model --rollback_to=12000 --skip_batches=200
  python -m experiments.pretrain --gin_file=my_run.gin --workdir=runs/pod --distributed      # on every host of a pod or Slurm job
  python -m experiments.pretrain --gin_file=my_run.gin --workdir=runs/two --coordinator=HOST:PORT --num_processes=2 --process_id=0

Exit codes: 0 finished, 1 another process died, 2 something to mend (one line says what), 75 stopped by SIGTERM or SIGINT with
everything saved.
The workdir gets metrics.jsonl, tensorboard/, checkpoints/, tokenizer/, config.json, config.gin and operative_config.gin.
"""

import time
from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.configs import PretrainConfig
from chameleon_jax.errors import ConfigError


def _flags(values):
    rollback = "go on from the checkpoint of this step; later ones are deleted"
    flags.DEFINE_integer("rollback_to", None, rollback, flag_values=values)
    flags.DEFINE_integer("skip_batches", 0, "with --rollback_to: pass over so many batches", flag_values=values)
    join = "join the other processes of a TPU pod, Slurm or MPI job"
    flags.DEFINE_boolean("distributed", False, join, flag_values=values)
    where = "HOST:PORT where process 0 listens; implies --distributed"
    flags.DEFINE_string("coordinator", None, where, flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many there are; implies --distributed", flag_values=values)
    flags.DEFINE_integer("process_id", None, "number of this one; implies --distributed", flag_values=values)
    flags.DEFINE_float("join_timeout", 300.0, "seconds to wait for the others", flag_values=values)


def main(config: PretrainConfig, args) -> int:
    if args.skip_batches < 0 or (args.skip_batches and args.rollback_to is None):
        raise ConfigError("--skip_batches is a number of batches to pass over after --rollback_to")
    from chameleon_jax.parallel import distributed

    by_hand = (args.coordinator, args.num_processes, args.process_id)
    if not args.distributed and by_hand == (None, None, None):
        return _pretrain(config, args)
    with distributed.join(*by_hand, timeout=args.join_timeout):
        return _pretrain(config, args)


def _pretrain(config: PretrainConfig, args) -> int:
    import jax

    from chameleon_jax.parallel import distributed
    from chameleon_jax.training.loop import Rollback, pretrain
    from chameleon_jax.workdir import versions

    of_this_process = ("platform", "command")
    versions_here = {name: version for name, version in versions().items() if name not in of_this_process}
    fields = {field: value for field, (value, _) in config.diff({}).items()}
    flags = {"--rollback_to": args.rollback_to, "--skip_batches": args.skip_batches}
    distributed.require_same(versions_here | fields | flags)
    distributed.require_same_folder(args.workdir)
    gin_text = {"config.gin": args.gin.given, "operative_config.gin": args.gin.operative}
    rollback = None if args.rollback_to is None else Rollback(step=args.rollback_to, skip_batches=args.skip_batches)
    begin = time.monotonic()
    code = pretrain(config, args.workdir, gin_text, rollback, _sampler(config))
    if code == 0 and jax.process_index() == 0:
        from chameleon_jax.evaluation import run_summary

        run_summary.show(config, Path(args.workdir), time.monotonic() - begin)
    return code


def _sampler(config: PretrainConfig):
    """What draws and writes during the run, where the config asks for it; made before training, so that a mistake shows at once."""
    import jax

    if not config.train.sample_every or jax.process_index() != 0:
        return None
    from chameleon_jax.evaluation.training_samples import TrainingSamples

    return TrainingSamples(config)


if __name__ == "__main__":
    cli.run(main, PretrainConfig, __doc__, add_flags=_flags)
