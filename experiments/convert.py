"""Convert checkpoints between Meta's layout, Hugging Face's (Chameleon, Anole, Lumina-mGPT) and workdirs of ours.

Examples:
  python -m experiments.convert --source data/models/7b --output runs/chameleon-7b
  python -m experiments.convert --source chameleon-7b-hf --vqgan vqgan.ckpt --output runs/chameleon-hf --preset chameleon-7b
  python -m experiments.convert --source Lumina-mGPT-7B-768 --vqgan vqgan.ckpt --resolution 768 --output runs/lumina
  python -m experiments.convert --source runs/emoji/model --to hf --dtype bfloat16 --without_codec --output emoji-hf
  python -m experiments.convert --source runs/chameleon-34b --to meta --shards 4 --output chameleon-34b-meta

The source is known by its files: params.json, config.json or checkpoints/. Values are moved, not computed: they come out bit
for bit, unless --dtype asks for rounding. An import needs memory for a few copies of the largest tensor. The output is a new
folder that is whole or absent; its convert.json lists every tensor that was read or dropped, and why. Reading or writing Meta's
.pth needs torch: pip install 'chameleon-jax[convert]'. docs/convert.md has the layouts.
"""

import signal
from pathlib import Path

from absl import flags

from chameleon_jax import cli, summary
from chameleon_jax.convert.releases import NUMERICS, RELEASES
from chameleon_jax.errors import ConvertError


def _flags(values):
    def text(name, help, **more):
        flags.DEFINE_string(name, None, help, flag_values=values, **more)

    def choice(name, default, known, help):
        flags.DEFINE_enum(name, default, known, help, flag_values=values)

    text("source", "the checkpoint's folder", required=True)
    text("output", "the new folder", required=True)
    choice("to", "jax", ("jax", "hf", "meta"), "layout to write; jax is a workdir of ours")
    choice("dtype", None, ("bfloat16", "float32"), "of the weights; by default that of the source")
    choice("preset", None, tuple(RELEASES), "the release that the source must be, or it is refused")
    choice("norm_order", None, ("pre", "swin"), "for a params.json that does not say; must agree with one that does")
    text("vqgan", "image codec to add: vqgan.ckpt, safetensors, or a folder of either")
    flags.DEFINE_boolean("without_codec", False, "leave the image codec out", flag_values=values)
    text("tokenizer", "text_tokenizer.json or tokenizer.json, if it is not beside the weights")
    choice("numerics", None, tuple(NUMERICS), "round as a released code does, for comparing with it")
    flags.DEFINE_integer("resolution", None, "side of pictures of Lumina-mGPT: 512, 768 or 1024", flag_values=values)
    help = "files of Meta's layout; by default as many as QK-norm has groups"
    flags.DEFINE_integer("shards", None, help, flag_values=values)
    flags.DEFINE_float("max_shard_gb", 2.0, "size of one safetensors file", flag_values=values)


def main(args) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops like Ctrl-C: nothing half-written stays
    from chameleon_jax.convert.opening import Options, open_release
    from chameleon_jax.convert.write import write

    if args.shards is not None and args.to != "meta":
        raise ConvertError("--shards is for --to=meta")
    if (args.shards is not None and args.shards < 1) or args.max_shard_gb <= 0:
        raise ConvertError("--shards and --max_shard_gb must be positive")
    options = Options(
        preset=args.preset,
        norm_order=args.norm_order,
        vqgan=Path(args.vqgan) if args.vqgan else None,
        tokenizer=Path(args.tokenizer) if args.tokenizer else None,
        dtype=args.dtype,
        numerics=args.numerics,
        resolution=args.resolution,
        without_codec=args.without_codec,
    )
    opened = open_release(Path(args.source), options)
    written = write(opened, Path(args.output), args.to, shards=args.shards, shard_bytes=int(args.max_shard_gb * 2**30))
    rate = written.bytes / 1e6 / max(written.seconds, 1e-3)
    for line in written.notes:
        print(f"  {line}")
    for reason in dict.fromkeys(entry["reason"] for entry in written.dropped):
        names = [entry["tensor"] for entry in written.dropped if entry["reason"] == reason]
        print(f"  dropped {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}")
    figures = {
        "weights": f"{written.parameters:,} parameters in {written.dtype} from {written.flavour} layout",
        "tensors": f"{written.tensors} read, {len(written.dropped)} dropped, {rate:.0f} MB/s",
    }
    usable = args.to == "jax" and opened.bundle is not None
    then = _next(args.output, opened.bundle) if usable else []
    summary.show(written.seconds, {args.output: f"layout {args.to}; convert.json lists every tensor"}, figures, then)


def _next(output: str, bundle) -> list[summary.Next]:
    """Words alone where there is nothing that could draw."""
    draws = bundle.pictures is not None and bundle.pictures.can_decode
    mode = [] if draws else [f"--mode={bundle.vocab.text.name}"]
    generate = [f"--workdir={output}", *mode, "--prompt=What is a chameleon?", "--out=out"]
    return [("generate", generate), ("serve", [f"--workdir={output}"])]


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags, workdir=False)
