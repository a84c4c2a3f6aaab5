"""Generate text, pictures and other data from a trained run.

Examples:
  python -m experiments.generate --workdir=runs/emoji/model --prompt="a red heart" --mode=image --out=out
  python -m experiments.generate --workdir=runs/emoji/model --image=heart.png --mode=text --count=4 --out=out
  python -m experiments.generate --workdir=runs/emoji/model --prompt="<image> and <image> differ:" --image=a.png --image=b.png \\
      --temperature=0 --gin.GenerationConfig.max_tokens=200 --out=out
  python -m experiments.generate --workdir=runs/three/model --media=sound=seven.wav --mode=text+image --out=out
  python -m experiments.generate --workdir=runs/chameleon --image=a.png --prompt="What is this?" --mode=text \\
      --out=out
  python -m experiments.generate --workdir=runs/lumina --image_size=768x512 --prompt="A red fox." --mode=image \\
      --max_images=1 --sampling=lumina --guidance=lumina --out=out

Every --image takes the place of an <image> of the prompt (named after the row that takes pictures in), in order, and every
--media=NAME=FILE that of a <NAME>; without such places they come first. Data of a modality without a codec are numbers:
--media=moves=0,1,1. The workdir is that of `experiments.pretrain`; its newest checkpoint that verifies is used. Writes OUT/KK.txt
(the words, with the names of the files where they came) and OUT/KK-N.png or .wav for each of --count outputs. docs/generate.md
has all settings.
"""

from pathlib import Path

from absl import flags, logging

from chameleon_jax import cli
from chameleon_jax.configs import SAMPLING_PRESETS, GenerationConfig
from chameleon_jax.errors import GenerationError

FORMATS = {
    "completion": "the prompt is continued",
    "chat": "it is a user's turn and is answered",
    "lumina": "chat, and with --image_size it describes the picture to draw",
}


class _SizeParser(flags.ArgumentParser):
    def parse(self, argument: str) -> tuple[int, int]:
        width, _, height = argument.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise ValueError("no width and height in pixels like 768x512")
        return int(width), int(height)


def _flags(values):
    flags.DEFINE_string("prompt", "", "words; each <image> in them is one of the --image pictures", flag_values=values)
    flags.DEFINE_multi_string("image", [], "a picture", flag_values=values)
    flags.DEFINE_multi_string("media", [], "NAME=FILE, data of the modality NAME", flag_values=values)
    formats = "; ".join(map(": ".join, FORMATS.items()))
    formats += "; by default what the model was trained on"
    flags.DEFINE_enum("format", None, tuple(FORMATS), formats, flag_values=values)
    size = "WxH, of every picture, in pixels; grid vocabularies only"
    flags.DEFINE(_SizeParser(), "image_size", None, size, flag_values=values)
    flags.DEFINE_string("out", None, "where text and PNG files are written", flag_values=values, required=True)
    flags.DEFINE_integer("count", 1, "outputs, each with its own draws", flag_values=values)
    mode = "what may come: a modality, several joined by +, interleaved or unrestricted"
    flags.DEFINE_string("mode", None, mode, flag_values=values)
    flags.DEFINE_integer("max_images", None, "most pictures in an output", flag_values=values)
    for name in ("max_tokens", "seed"):
        flags.DEFINE_integer(name, None, f"same as --gin.GenerationConfig.{name}", flag_values=values)
    cli.define_mesh(values)
    released = "settings of a released decoder"
    flags.DEFINE_enum("sampling", None, tuple(SAMPLING_PRESETS), released, flag_values=values)
    flags.DEFINE_enum("guidance", None, ("meta", "lumina"), "guide pictures as that release does", flag_values=values)
    flags.DEFINE_float("temperature", None, "of all modalities; 0 takes the most likely", flag_values=values)
    flags.DEFINE_float("top_p", None, "of all modalities", flag_values=values)
    flags.DEFINE_integer("top_k", None, "of all modalities; 0 takes all", flag_values=values)


def main(config: GenerationConfig, args) -> None:
    from chameleon_jax.generation.asked import config_with, parts_of
    from chameleon_jax.generation.engine import generate
    from chameleon_jax.generation.loading import load_run
    from chameleon_jax.generation.output_files import make_folder, write_output
    from chameleon_jax.generation.prompt import build_request, read_output
    from chameleon_jax.parallel.mesh import make_mesh

    if args.count < 1:
        raise GenerationError(f"--count is {args.count}; ask for at least 1 output")
    folder = Path(args.out)
    make_folder(folder)
    run = load_run(args.workdir, make_mesh(args.mesh) if args.mesh else None)
    config = config_with(config, run.bundle, args)
    parts = parts_of(args.prompt, args.image, args.media, run.bundle)
    request = build_request(parts, run.bundle, config, format=args.format or run.format, image_size=args.image_size)
    logging.info("step %d of %s, prompt of %d ids", run.step, args.workdir, len(request.prompt))
    prompts, pictures = [request.prompt] * args.count, [request.pictures] * args.count
    vocab = run.bundle.vocab
    outputs = generate(run.params, run.model, vocab, prompts, request.config, pictures=pictures, donate=True)
    for number, output in enumerate(outputs):
        words = write_output(read_output(output.ids, run.bundle), folder, number, run.bundle)
        print(f"{folder}/{number:02d}.txt ({len(output.ids)} ids, stopped by {output.finish_reason}): {words}")


if __name__ == "__main__":
    cli.run(main, GenerationConfig, __doc__, add_flags=_flags)
