"""Train a tokenizer bundle on your pictures and texts: the image codec, the byte-level BPE, or both.

Stop it at any time and run the same command again: the codec goes on from its last save.

Examples:
  python -m experiments.train_tokenizer --gin_file=gin_configs/runs/emoji_tokenizer.gin --gin.DATA=runs/emoji/data \\
      --workdir=runs/emoji/tokenizer
  python -m experiments.train_tokenizer --gin_file=my.gin --gin.TrainTokenizerConfig.parts=text --workdir=runs/mine/tokenizer

The workdir becomes the bundle; evaluation.json and reconstructions.png tell how good the codec is on held-out pictures.
"""

from chameleon_jax import cli
from chameleon_jax.configs import TrainTokenizerConfig


def main(config: TrainTokenizerConfig, args) -> None:
    from chameleon_jax.tokenizer_training.bundle import train_bundle

    train_bundle(config, args.workdir)


if __name__ == "__main__":
    cli.run(main, TrainTokenizerConfig, __doc__)
