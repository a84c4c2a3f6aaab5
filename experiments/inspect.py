"""Show what a run, a token store, a tokenizer or a checkpoint holds.

Examples:
  python -m experiments.inspect --gin_file=gin_configs/runs/emoji.gin      # resolved config and parameter table
  python -m experiments.inspect --gin_file=gin_configs/runs/emoji.gin --gin.TransformerConfig.n_layers=12
  python -m experiments.inspect runs/emoji/store/train                     # a token store
  python -m experiments.inspect runs/emoji/model                           # a run and its checkpoints
  python -m experiments.inspect runs/chameleon-34b --mesh=tensor=8         # and its bytes on each of 8 devices
  python -m experiments.inspect runs/emoji/tokenizer                       # a tokenizer bundle
"""

import json

from absl import flags

from chameleon_jax import cli
from chameleon_jax.configs import PretrainConfig
from chameleon_jax.errors import ChameleonError


def _flags(values):
    flags.DEFINE_boolean("verify", False, "read and check every byte", flag_values=values)
    cli.define_mesh(values, "show the bytes on each device, with --verify reading the weights to their places")


def main(config: PretrainConfig | None, args) -> None:
    from chameleon_jax.evaluation import inspection
    from chameleon_jax.parallel.mesh import abstract_mesh, check_model_fits, make_mesh
    from chameleon_jax.training.pretraining import complete

    # Devices are needed to count what is left for -1, and to read to; sizes can be told without.
    needs_devices = args.mesh is not None and (args.verify or -1 in (args.mesh.data, args.mesh.fsdp, args.mesh.tensor))
    mesh = None if args.mesh is None else make_mesh(args.mesh) if needs_devices else abstract_mesh(args.mesh)
    if config is not None and args.path:
        raise ChameleonError(f"give --gin_file or a path ({args.path}), not both")
    if config is not None:
        config = complete(config)
        if mesh is not None:
            check_model_fits(config.model, mesh)  # before a page of text
        print(json.dumps(config.to_dict(), indent=2))
        inspection.print_parameters(config.model)
        if mesh is not None:
            inspection.print_sharding(config.model, mesh)
    elif args.path:
        inspection.print_path(args.path, verify=args.verify, mesh=mesh)
    else:
        raise ChameleonError("nothing to inspect: give a path or --gin_file (see --help)")


if __name__ == "__main__":
    cli.run(main, PretrainConfig, __doc__, add_flags=_flags, workdir=False, positional="path", config_is_optional=True)
