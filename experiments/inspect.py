"""Show what a run, a token store, a tokenizer, a checkpoint or a file of raw data holds.

Examples:
  python -m experiments.inspect --gin_file=gin_configs/runs/smoke.gin      # resolved config and parameter table
  python -m experiments.inspect --gin_file=gin_configs/runs/smoke.gin --gin.TransformerConfig.n_layers=12
  python -m experiments.inspect runs/emoji/data/google                     # raw data: records as tokenising reads them, and rejects
  python -m experiments.inspect runs/emoji/store/train                     # a token store: counts
  python -m experiments.inspect runs/emoji/store/train --show=8            # 8 of its documents: pictures, words, ids, rejects
  python -m experiments.inspect runs/emoji/tokenizer                       # a tokenizer bundle
  python -m experiments.inspect runs/emoji/tokenizer --show=8 --data=runs/emoji/data/apple    # originals and reconstructions
  python -m experiments.inspect runs/emoji/model                           # a run and its checkpoints
  python -m experiments.inspect runs/photos                                # what `new` made: how far it is, and what is next
  python -m experiments.inspect runs/chameleon-34b --mesh=tensor=8         # and its bytes on each of 8 devices

Documents are listed here and drawn on a page, one file that a browser opens: --out.
"""

import json
from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.configs import PretrainConfig
from chameleon_jax.errors import ChameleonError
from chameleon_jax.progress import printable

RECORDS = 8  # of raw data, where nobody says


def _flags(values):
    flags.DEFINE_boolean("verify", False, "read and check every byte", flag_values=values)
    cli.define_mesh(values, "show the bytes on each device, with --verify reading the weights to their places")
    flags.DEFINE_integer("show", None, "how many documents to show", lower_bound=1, flag_values=values)
    flags.DEFINE_string("data", None, "with --show of a tokenizer: pictures and texts to try it on", flag_values=values)
    flags.DEFINE_string("tokenizer", None, "of raw data: reads it with this tokenizer's modalities", flag_values=values)
    flags.DEFINE_string("out", "inspect.html", "the page of --show", flag_values=values)


def main(config: PretrainConfig | None, args) -> None:
    if config is not None and args.path:
        raise ChameleonError(f"give --gin_file or a path ({args.path}), not both")
    if config is None and not args.path:
        raise ChameleonError("nothing to inspect: give a path or --gin_file (see --help)")
    from chameleon_jax.evaluation import inspection
    from chameleon_jax.own_data import stages
    from chameleon_jax.parallel.mesh import abstract_mesh, make_mesh

    if config is None and not (args.show or args.verify or args.mesh) and stages.is_new_folder(Path(args.path)):
        return print(*stages.lines(Path(args.path)), sep="\n")
    if config is None and (args.show or inspection.kind_of(Path(args.path)) is None):
        return _show(args)
    # Devices are needed to count what is left for -1, and to read to; sizes can be told without.
    needs_devices = args.mesh is not None and (args.verify or -1 in (args.mesh.data, args.mesh.fsdp, args.mesh.tensor))
    mesh = None if args.mesh is None else make_mesh(args.mesh) if needs_devices else abstract_mesh(args.mesh)
    return _print_config(config, mesh) if config else inspection.print_path(args.path, verify=args.verify, mesh=mesh)


def _show(args) -> None:
    from chameleon_jax.evaluation import record_page, records

    if args.verify or args.mesh:
        raise ChameleonError(
            f"{args.path} is shown: --verify and --mesh are for tables of stores, runs and checkpoints"
        )
    shown = records.of_path(Path(args.path), args.show or RECORDS, data=args.data, tokenizer=args.tokenizer)
    print(f"{printable(shown.title)}\n{printable(shown.lead)}\n")
    for line in record_page.lines(shown.sections):
        print(line)
    record_page.write(args.out, shown.title, shown.lead, shown.sections)
    print(f"\nlook at {args.out}")


def _print_config(config: PretrainConfig, mesh) -> None:
    from chameleon_jax.evaluation import inspection
    from chameleon_jax.parallel.mesh import check_model_fits
    from chameleon_jax.training.pretraining import complete

    config = complete(config)
    if mesh is not None:
        check_model_fits(config.model, mesh)  # before a page of text
    print(json.dumps(config.to_dict(), indent=2))
    inspection.print_parameters(config.model)
    if mesh is not None:
        inspection.print_sharding(config.model, mesh)


if __name__ == "__main__":
    cli.run(main, PretrainConfig, __doc__, add_flags=_flags, workdir=False, positional="path", config_is_optional=True)
