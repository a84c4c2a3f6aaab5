"""Write scikit-learn's handwritten digits as PNG files with captions: a real data set that needs no download.

Examples:
  python -m experiments.digits --workdir=runs/quickstart/data
"""

from chameleon_jax import cli
from chameleon_jax.demo import digits


def main(args) -> None:
    digits.write(args.workdir)
    print(f"{args.workdir}: train.jsonl, heldout.jsonl and images/")


if __name__ == "__main__":
    cli.run(main, None, __doc__)
