"""Examine a trained run: does it understand pictures, measured by choosing the right caption among others by likelihood.

Examples:
  python -m experiments.evaluate --gin_file=gin_configs/runs/emoji_evaluate.gin --gin.DATA=runs/emoji/data \\
      --workdir=runs/emoji/model

Prints accuracy (chance is 1 / choices) and by how many nats a caption is likelier given its own picture than given another one;
writes them to captions.json in the workdir, and samples.png, a page of captions and pictures that the model makes.
"""

import json
import time
from pathlib import Path

from chameleon_jax import cli, summary
from chameleon_jax.configs import CaptionEvalConfig


def main(config: CaptionEvalConfig, args) -> None:
    from chameleon_jax.evaluation import captions, samples
    from chameleon_jax.generation.loading import load_run
    from chameleon_jax.parallel.mesh import make_mesh

    begin = time.monotonic()
    loaded = load_run(args.workdir, make_mesh(args.mesh) if args.mesh else None)
    data = captions.read_captioned(config.source, loaded.bundle, config.pictures)
    model = (loaded.params, loaded.model, loaded.bundle, data)
    choice = captions.choose_captions(*model, choices=config.choices, seed=config.seed)
    gain = captions.picture_gain(*model, seed=config.seed)
    numbers = {
        "step": loaded.step,
        "pictures": len(data.captions),
        "choices": config.choices,
        "accuracy": choice.accuracy,
        "picture_gain_nats": gain.nats,
        "picture_gain_standard_error": gain.standard_error,
    }
    (Path(args.workdir) / "captions.json").write_text(json.dumps(numbers, indent=2) + "\n")
    page = Path(args.workdir) / "samples.png"
    title = f"Captions and pictures, source '{config.source.name}', step {loaded.step}"
    subtitle = f"right caption among {config.choices}: {choice.accuracy:.1%}; picture gain {gain.nats:.2f} nats"
    samples.draw_page(loaded, data, page, title=title, subtitle=subtitle, seed=config.seed)
    figures = {
        "data": f"{len(data.captions)} pictures of '{config.source.name}', step {loaded.step}",
        "accuracy": f"{choice.accuracy:.1%}, right caption among {config.choices} (chance {1 / config.choices:.0%})",
        "gain": f"{gain.nats:.2f} +- {gain.standard_error:.2f} nats, NLL(caption | another picture) - NLL(caption | its picture)",
    }
    wrote = {str(Path(args.workdir) / "captions.json"): "these figures", str(page): "captions and pictures: look at it"}
    summary.show(time.monotonic() - begin, wrote, figures, [("serve", [f"--workdir={args.workdir}"])])


if __name__ == "__main__":
    cli.run(main, CaptionEvalConfig, __doc__, add_flags=cli.define_mesh)
