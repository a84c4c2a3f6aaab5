"""Extend a tokenizer by named control ids: a new bundle in which all old ids keep their meaning.

Examples:
  python -m experiments.extend_tokenizer --tokenizer runs/chameleon-7b/tokenizer --name '<brush>' --name '</brush>' \\
      --output runs/brush/tokenizer

The new ids stand at the end of the id space. They are control ids: no text becomes one, whatever it spells. A run whose data were
tokenized with the new bundle can start from weights of the old one (docs/pretrain.md, "Start from weights").
"""

from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.errors import TokenizerError
from chameleon_jax.files import new_folder


def _flags(values):
    flags.DEFINE_string("tokenizer", None, "the bundle to extend", flag_values=values, required=True)
    flags.DEFINE_multi_string("name", None, "of a new id", flag_values=values, required=True)
    flags.DEFINE_string("output", None, "the new bundle's folder", flag_values=values, required=True)


def main(args) -> None:
    from chameleon_jax.tokenizers.bundle import TokenizerBundle

    old = TokenizerBundle.load(args.tokenizer)
    new = old.with_added((*old.vocab_config.added, *args.name))
    try:
        with new_folder(Path(args.output)) as folder:
            new.save(folder)
    except FileExistsError as error:
        raise TokenizerError(f"{error}: give another --output or remove it") from error
    except OSError as error:
        raise TokenizerError(f"{args.output} cannot be written ({error.strerror}): give another --output") from error
    ids = ", ".join(f"{name} {new.added_ids[name]}" for name in args.name)
    print(f"{args.output}: {new.vocab.size:,} ids, new are {ids}")
    print(f"fingerprint {new.fingerprint()}, extends {old.fingerprint()}")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags, workdir=False)
