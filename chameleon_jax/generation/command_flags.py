"""The flags of the command that generates: quick to import, since `--help` and a wrong flag need nothing else."""

from __future__ import annotations

from typing import Any

from absl import flags

from chameleon_jax.configs import SAMPLING_PRESETS
from chameleon_jax.configs.generation import parse_size
from chameleon_jax.errors import GenerationError

FORMATS = {
    "completion": "the prompt is continued",
    "chat": "it is a user's turn and is answered",
    "lumina": "chat, and with --image_size it describes the picture to draw",
}


class _SizeParser(flags.ArgumentParser):
    def parse(self, argument: str) -> tuple[int, int]:
        return parse_size(argument)


class _Once(flags.Flag):
    """Words that are given once: of two the first would be lost unsaid."""

    def parse(self, argument: str) -> None:
        if self.present:
            raise flags.IllegalFlagValueError(
                "--prompt is given twice: write one text, or a file of requests for --prompts"
            )
        super().parse(argument)


def define(values: flags.FlagValues) -> None:
    """The flags of `experiments.generate`, but for the mesh."""
    words = "words; each <image> in them is one of the --image pictures"
    flags.DEFINE_flag(_Once(flags.ArgumentParser(), flags.ArgumentSerializer(), "prompt", "", words), values)
    lines = (
        'file of requests, one a line: {"prompt": ..., "seed": ...}, fields named as flags; finished ones are skipped'
    )
    flags.DEFINE_string("prompts", None, lines, flag_values=values)
    flags.DEFINE_boolean("chat", False, "a conversation in the terminal", flag_values=values)
    flags.DEFINE_integer("together", 32, "most outputs that are drawn at a time", flag_values=values)
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
    released = "settings of a released decoder"
    flags.DEFINE_enum("sampling", None, tuple(SAMPLING_PRESETS), released, flag_values=values)
    flags.DEFINE_enum("guidance", None, ("meta", "lumina"), "guide pictures as that release does", flag_values=values)
    flags.DEFINE_float("temperature", None, "of all modalities; 0 takes the most likely", flag_values=values)
    flags.DEFINE_float("top_p", None, "of all modalities", flag_values=values)
    flags.DEFINE_integer("top_k", None, "of all modalities; 0 takes all", flag_values=values)


def check(args: Any) -> None:
    """Raise GenerationError for flags that contradict each other."""
    alone = [name for name in ("prompt", "image", "media") if getattr(args, name)]
    if (args.prompts or args.chat) and (alone or (args.prompts and args.chat)):
        other = f"--{alone[0]}" if alone else "--prompts"
        raise GenerationError(f"--{'chat' if args.chat else 'prompts'} and {other} ask for different things: drop one")
    if args.together < 1:
        raise GenerationError(f"--together is {args.together}; draw at least 1 output at a time")
