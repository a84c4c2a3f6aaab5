"""Look at your own data, and write the gin files of a run on them that fits this machine and a stated time.

Examples:
  python -m experiments.new --data=photos --workdir=runs/photos
  python -m experiments.new --data=photos/captions.csv --minutes=120 --workdir=runs/photos
  python -m experiments.new --data='shards/*.tar' --workdir=runs/shards
  python -m experiments.new --data=icons --caption="an icon" --workdir=runs/icons     # pictures without words

The data are a folder of pictures (with a text file beside each, in a folder for each class, or alone), a manifest, a table
(CSV, TSV), lines of JSON, parquet files, WebDataset tars, or what Hugging Face datasets saved to disk. They are read and not
changed. Writes records.html (the first records, and those that cannot be used), run_tokenizer.gin, run_tokenize.gin and run.gin
into the workdir, and prints the commands that use them, each with the time that it will take here. docs/own_data.md goes the
whole way.
"""

import dataclasses
import math
from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.errors import ConfigError

SHOWN = 24  # records on the page


def _flags(values):
    flags.DEFINE_string("data", None, "a file, a folder or a glob", flag_values=values, required=True)
    flags.DEFINE_float("minutes", 30.0, "that all commands together may take", flag_values=values)
    flags.DEFINE_string("split", "", "only records of this split", flag_values=values)
    flags.DEFINE_string("caption", None, "words for every one of pictures that have none", flag_values=values)
    flags.DEFINE_boolean(
        "overwrite", False, "replace gin files of an earlier time, and measure this machine anew", flag_values=values
    )


def main(args) -> None:
    if not 0 < args.minutes < math.inf:
        raise ConfigError(f"--minutes must be a positive number, got {args.minutes:g}")
    from chameleon_jax.own_data import proposal

    proposal.require_new(Path(args.workdir), args.data)
    source = proposal.source_of_flags(args.data, args.split, args.caption)
    found = proposal.look(source)
    folder = Path(args.workdir).resolve()
    proposed = proposal.propose(found, folder, args.minutes, overwrite=args.overwrite)
    is_new = proposal.write(proposed, overwrite=args.overwrite, shown=SHOWN)
    for line in proposal.lines(dataclasses.replace(proposed, folder=Path(args.workdir))):
        print(line)
    if not is_new:
        print(f"kept: the gin files in {args.workdir}, which an earlier time wrote for the same data and time")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
