"""Compile what a run would run, for TPUs that are not here: its memory, what crosses the wire, and an estimate of its time.

Examples:
  python -m experiments.compile_only --gin_file=gin_configs/runs/smoke.gin --topology=local
  python -m experiments.compile_only --gin_file=... --topology=v5p:4x4x4 --gin.MeshConfig.fsdp=64 --workdir=runs/report
  python -m experiments.compile_only --gin_file=... --topology=v5e:2x4 --program=decode --gin.MeshConfig.tensor=8 \\
      --gin.MeshConfig.fsdp=1 --slots=8 --context=4096
  python -m experiments.compile_only --gin_file=... --topology=v5p:4x4x4 --sweep=3     # meshes and remat policies compared

No array is made: shapes, dtypes and shardings are those of the run. TPU topologies need libtpu: pip install 'chameleon-jax[tpu]'.
The workdir, if given, gets report.json, and report.png where matplotlib is installed.
"""

from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.configs import EngineConfig, PretrainConfig
from chameleon_jax.errors import ConfigError


def _flags(values):
    where = "a TPU topology, as v5p:4x4x4, v5e:4x4 or v6e:8x8; local: the devices of this machine"
    flags.DEFINE_string("topology", None, where, flag_values=values, required=True)
    what = "train: a step; decode: one id for every slot; prefill: prompts to caches"
    flags.DEFINE_enum("program", "train", ["train", "decode", "prefill"], what, flag_values=values)
    flags.DEFINE_string("workdir", None, "where report.json and report.png are written", flag_values=values)
    flags.DEFINE_integer("slots", 8, "sequences that decode together", lower_bound=1, flag_values=values)
    whole = "ids of a slot, all of them looked at; 0 = the model's context"
    flags.DEFINE_integer("context", 0, whole, lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "prompt",
        0,
        "ids of a prompt, for --program=prefill; 0 = 1,024, or the context",
        lower_bound=0,
        flag_values=values,
    )
    forms = ["compute", "bfloat16", "int8"]
    several = "in place of the run's own mesh and remat policy, compile so many of the most promising ones, and name the fastest"
    flags.DEFINE_integer("sweep", 0, several, lower_bound=0, flag_values=values)
    flags.DEFINE_enum("weights", "compute", forms, "how decoding holds weights", flag_values=values)


def main(config: PretrainConfig, args) -> None:
    from chameleon_jax.compile_report import chips, console, files, programs, refusal, report, sweep

    devices = chips.devices_of(args.topology)
    if args.sweep:
        if args.program != "train":
            raise ConfigError("--sweep compares training steps; leave --program out")
        print(sweep.text(sweep.sweep(config, devices, args.sweep)), end="")
        return
    engine = EngineConfig(slots=args.slots, context=args.context, weights=args.weights)
    program = programs.program(config, args.program, devices, engine, args.prompt)
    try:
        found = report.compile_report(program)
    except report.TooLarge as error:
        raise refusal.of_compiler(program, str(error), error.alive) from None
    print(console.text(found), end="")
    if args.workdir:
        files.write(found, Path(args.workdir), args.gin.operative)
    refusal.check(found)


if __name__ == "__main__":
    cli.run(main, PretrainConfig, __doc__, add_flags=_flags, workdir=False)
