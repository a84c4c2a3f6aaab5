"""What a report leaves in a folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from chameleon_jax.compile_report.report import Report


def write(report: Report, folder: Path, gin_text: str) -> None:
    """`report.json`, the program (`program.txt`), the gin text of the run, and `report.png` where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    (folder / "operative_config.gin").write_text(gin_text)
    (folder / "program.txt").write_text(report.text)
    wrote = [folder / "report.json"]
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed (pip install 'chameleon-jax[notebook]')")
    else:
        from chameleon_jax.compile_report import picture

        picture.draw(report, folder / "report.png")
        wrote.append(folder / "report.png")
    print("wrote " + " and ".join(map(str, wrote)))
