"""Pretrain a mixed-modal transformer on token stores; run the same command again to resume.

Examples:
  python -m experiments.pretrain --gin_file=gin_configs/runs/smoke.gin --workdir=runs/smoke
  python -m experiments.pretrain --gin_file=gin_configs/runs/emoji.gin --workdir=runs/emoji/model --gin.TrainConfig.steps=200

Exit codes: 0 finished, 2 something to mend (one line says what), 75 stopped by SIGTERM or SIGINT with everything saved.
The workdir gets metrics.jsonl, tensorboard/, checkpoints/, tokenizer/, config.json, config.gin and operative_config.gin.
"""

from chameleon_jax import cli
from chameleon_jax.configs import PretrainConfig


def _flags(parser):
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of a pod or cluster (jax.distributed)"
    )


def main(config: PretrainConfig, args) -> int:
    if args.distributed:
        import jax

        jax.distributed.initialize()
    from chameleon_jax.training.loop import pretrain

    if config.prepare == "digits":
        from chameleon_jax.demo.prepare import digit_stores

        digit_stores(args.workdir)
    return pretrain(config, args.workdir, {"config.gin": args.gin.given, "operative_config.gin": args.gin.operative})


if __name__ == "__main__":
    cli.run(main, PretrainConfig, __doc__, add_flags=_flags)
