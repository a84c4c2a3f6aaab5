"""Generate text and pictures from a trained run.

Examples:
  python -m experiments.generate --workdir=runs/emoji/model --prompt="a red heart" --mode=image --out=out
  python -m experiments.generate --workdir=runs/emoji/model --image=heart.png --mode=text --count=4 --out=out
  python -m experiments.generate --workdir=runs/emoji/model --prompt="<image> and <image> differ:" --image=a.png --image=b.png \\
      --temperature=0 --gin.GenerationConfig.max_tokens=200 --out=out
  python -m experiments.generate --workdir=runs/chameleon --format=chat --image=a.png --prompt="What is this?" --mode=text --out=out
  python -m experiments.generate --workdir=runs/lumina --format=lumina --image_size=768x512 --prompt="A red fox." --mode=image \\
      --max_images=1 --sampling=lumina --guidance=lumina --out=out

Every --image takes the place of an <image> of the prompt, in order; without such places the pictures come first. The workdir is
that of `experiments.pretrain`; its newest checkpoint that verifies is used. Writes OUT/KK.txt (the words, with the names of the
pictures where they came) and OUT/KK-N.png for each of --count outputs. docs/generate.md has all settings.
"""

import argparse
import dataclasses
import logging
from pathlib import Path

from chameleon_jax import cli
from chameleon_jax.configs import SAMPLING_PRESETS, GenerationConfig, GuidanceConfig
from chameleon_jax.errors import GenerationError

SETTINGS = {"mode": str, "max_tokens": int, "max_images": int, "seed": int}  # flags that set a field of the config
FORMATS = {
    "completion": "the prompt is continued",
    "chat": "it is a user's turn and is answered",
    "lumina": "chat, and with --image_size it describes the picture to draw",
}


def _flags(parser):
    parser.add_argument("--prompt", default="", help="words; each <image> in them is one of the --image pictures")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be given again")
    parser.add_argument(
        "--format", choices=FORMATS, default="completion", help="; ".join(map(": ".join, FORMATS.items()))
    )
    parser.add_argument(
        "--image_size", type=_size, metavar="WxH", help="of every picture, in pixels; grid vocabularies only"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where text and PNG files are written")
    parser.add_argument("--count", type=int, default=1, help="outputs, each with its own draws")
    for name, kind in SETTINGS.items():
        parser.add_argument(f"--{name}", type=kind, help=f"same as --gin.GenerationConfig.{name}")
    cli.add_mesh_flag(parser)
    parser.add_argument("--sampling", choices=SAMPLING_PRESETS, help="settings of a released decoder")
    parser.add_argument("--guidance", choices=("meta", "lumina"), help="guide pictures as that release does")
    parser.add_argument("--temperature", type=float, help="of text and images; 0 takes the most likely")
    parser.add_argument("--top_p", type=float, help="of text and images")
    parser.add_argument("--top_k", type=int, help="of text and images; 0 takes all")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{text}' is no width and height in pixels like 768x512")
    return int(width), int(height)


def _with_flags(config: GenerationConfig, args) -> GenerationConfig:
    changes = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    given = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k") if getattr(args, name) is not None}
    settings = SAMPLING_PRESETS.get(args.sampling, (config.text, config.image))
    changes |= {name: dataclasses.replace(s, **given) for name, s in zip(("text", "image"), settings, strict=True)}
    if args.guidance:
        changes["guidance"] = dataclasses.replace(config.guidance or GuidanceConfig(), scheme=args.guidance)
    return dataclasses.replace(config, **changes)


def main(config: GenerationConfig, args) -> None:
    from chameleon_jax.generation.engine import generate
    from chameleon_jax.generation.loading import load_run
    from chameleon_jax.generation.output_files import make_folder, read_file, write_output
    from chameleon_jax.generation.prompt import build_request, read_output
    from chameleon_jax.parallel.mesh import make_mesh
    from chameleon_jax.tokenizers.images import load_pixels

    if args.count < 1:
        raise GenerationError(f"--count is {args.count}; ask for at least 1 output")
    folder, config = Path(args.out), _with_flags(config, args)
    make_folder(folder)
    run = load_run(args.workdir, make_mesh(args.mesh) if args.mesh else None)
    pictures = [load_pixels(read_file(name), run.bundle.image_config) for name in args.image]
    form = {"format": args.format, "image_size": args.image_size}
    prompt, config = build_request(args.prompt, pictures, run.bundle, config, **form)
    logging.info("step %d of %s, prompt of %d ids", run.step, args.workdir, len(prompt))
    outputs = generate(run.params, run.model, run.bundle.vocab, [prompt] * args.count, config, donate=True)
    for number, output in enumerate(outputs):
        words = write_output(read_output(output.ids, run.bundle), folder, number)
        print(f"{folder}/{number:02d}.txt ({len(output.ids)} ids, stopped by {output.finish_reason}): {words}")


if __name__ == "__main__":
    cli.run(main, GenerationConfig, __doc__, add_flags=_flags)
