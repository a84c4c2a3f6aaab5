"""Train a tokenizer bundle on your pictures and texts: the image codec, the byte-level BPE, or both.

Stop it at any time (Ctrl-C or SIGTERM: it saves and ends with exit code 75) and run the same command again: it goes on, to the same
weights bit for bit. After a kill that asks nobody it goes on from its last save.

Examples:
  python -m experiments.train_tokenizer --gin_file=gin_configs/runs/emoji_tokenizer.gin --gin.DATA=runs/emoji/data \\
      --workdir=runs/emoji/tokenizer
  python -m experiments.train_tokenizer --gin_file=my.gin --gin.TrainTokenizerConfig.parts=text --workdir=runs/mine/tokenizer

The workdir becomes the bundle; evaluation.json and reconstructions.png tell how good the codec is on held-out pictures.
"""

from chameleon_jax import cli
from chameleon_jax.configs import TrainTokenizerConfig


def main(config: TrainTokenizerConfig, args) -> int:
    from chameleon_jax.tokenizer_training.bundle import train_bundle

    return train_bundle(config, args.workdir)


if __name__ == "__main__":
    cli.run(main, TrainTokenizerConfig, __doc__)
