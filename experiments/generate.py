"""Generate text, pictures and other data from a trained run.

Examples:
  python -m experiments.generate --workdir=runs/emoji/model --prompt="a red heart" --mode=image --out=out
  python -m experiments.generate --workdir=runs/emoji/model --image=heart.png --mode=text --count=4 --out=out
  python -m experiments.generate --workdir=runs/emoji/model --prompt="<image> and <image> differ:" --image=a.png --image=b.png \\
      --temperature=0 --gin.GenerationConfig.max_tokens=200 --out=out
  python -m experiments.generate --workdir=runs/three/model --media=sound=seven.wav --mode=text+image --out=out
  python -m experiments.generate --workdir=runs/chameleon --image=a.png --prompt="What is this?" --mode=text \\
      --out=out
  python -m experiments.generate --workdir=runs/emoji/model --prompts=requests.jsonl --mode=image --out=out
  python -m experiments.generate --workdir=runs/emoji/model --chat --out=out
  python -m experiments.generate --workdir=runs/lumina --image_size=768x512 --prompt="A red fox." --mode=image \\
      --max_images=1 --sampling=lumina --guidance=lumina --out=out

Every --image takes the place of an <image> of the prompt (named after the row that takes pictures in), in order, and every
--media=NAME=FILE that of a <NAME>; without such places they come first. Data of a modality without a codec are numbers:
--media=moves=0,1,1. The workdir is that of `experiments.pretrain`; its newest checkpoint that verifies is used. Writes OUT/KK.txt
(the words, with the names of the files where they came), OUT/KK-N.png or .wav, and OUT/KK.json (prompt, seed and settings, which
PNG files hold too) for each of --count outputs, and of several pictures sheet.png. docs/generate.md has all settings.
"""

import time
from pathlib import Path

from absl import logging

from chameleon_jax import cli, summary
from chameleon_jax.configs import GenerationConfig
from chameleon_jax.generation import command_flags
from chameleon_jax.progress import count, printable
from chameleon_jax.workdir import require_run


def _flags(values):
    command_flags.define(values)
    cli.define_mesh(values)


def main(config: GenerationConfig, args) -> None:
    command_flags.check(args)
    from chameleon_jax.generation import chat, drawing
    from chameleon_jax.generation.loading import load_run
    from chameleon_jax.generation.output_files import SHEET_MOST, contact_sheet, make_folder
    from chameleon_jax.parallel.mesh import make_mesh

    begin, folder = time.monotonic(), Path(args.out)
    require_run(args.workdir)  # before anything is made
    make_folder(folder)
    run = load_run(args.workdir, make_mesh(args.mesh) if args.mesh else None)
    if args.chat:
        return chat.talk(chat.open_chat(run, config, args, folder))
    asked = drawing.asked_for(run, config, args)
    todo = drawing.unfinished(asked, folder) if args.prompts else asked
    there = f", {len(asked) - len(todo)} of them lie there" if len(todo) < len(asked) else ""
    logging.info("step %d of %s, %s%s", run.step, args.workdir, count(len(asked), "output"), there)
    for one in drawing.draw(run, todo, folder, together=args.together):
        told = f"({one.tokens} ids, stopped by {one.finish_reason})"
        print(f"{folder}/{one.name}.txt {told}: {printable(one.words)}", flush=True)
    files = [name for one in asked for name in drawing.files_of(one, folder)]
    sheet, pictures = contact_sheet(folder, files), sum(name.endswith(".png") for name in files)
    shown = "all pictures" if pictures <= SHEET_MOST else f"the first {SHEET_MOST} of {pictures:,} pictures"
    wrote = {str(folder): f"{count(len(asked), 'output')} with {count(len(files), 'file')}"}
    wrote |= {str(sheet): f"{shown}: look at it"} if sheet else {}
    summary.show(time.monotonic() - begin, wrote, {}, [("serve", [f"--workdir={args.workdir}"])])


if __name__ == "__main__":
    cli.run(main, GenerationConfig, __doc__, add_flags=_flags)
