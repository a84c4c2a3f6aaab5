"""Prepare the emoji pictures of four vendors, with written captions, as folder sources.

Reads the npm packages emoji-datasource-{google,twitter,facebook,apple} 16.0.0 from --archives, and fetches the missing ones there
with `npm pack`. Three vendors are for training; apple is held out. Licences: the data and twitter's pictures (Twemoji) are free to
use, google's are Apache 2.0; facebook's and apple's belong to their makers and are for private study only. Commit none of them.

Examples:
  python -m experiments.emoji --archives=downloads --workdir=runs/emoji/data
"""

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from absl import flags

from chameleon_jax import cli
from chameleon_jax.demo.emoji_captions import captions
from chameleon_jax.errors import DataError

VERSION = "16.0.0"
TRAINING, HELD_OUT = ("google", "twitter", "facebook"), "apple"


def _flags(values):
    flags.DEFINE_string("archives", None, "folder of the .tgz files (default: WORKDIR/archives)", flag_values=values)
    flags.DEFINE_integer("phrasings", 4, "captions of each training picture", flag_values=values)


def main(args) -> None:
    archives, workdir = Path(args.archives or Path(args.workdir) / "archives"), Path(args.workdir)
    for vendor in (*TRAINING, HELD_OUT):
        archive = fetch(vendor, archives)
        entries, pictures = extract(archive, vendor, workdir / vendor)
        found = records(entries, pictures, args.phrasings if vendor in TRAINING else 0)
        write_manifest(found, workdir / vendor / "manifest.jsonl")
        print(f"{workdir / vendor}: {len(pictures):,} pictures, {len(found):,} captioned records")


def fetch(vendor: str, folder: Path) -> Path:
    """The vendor's npm package, fetched if it is not in `folder`. Raises DataError when npm is missing or fails."""
    archive = folder / f"emoji-datasource-{vendor}-{VERSION}.tgz"
    if archive.is_file():
        return archive
    package = f"emoji-datasource-{vendor}@{VERSION}"
    if shutil.which("npm") is None:
        raise DataError(f"{archive} does not exist and npm is not installed: run `npm pack {package}` elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["npm", "pack", package], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not archive.is_file():
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise DataError(f"`npm pack {package}` failed in {folder}: {reason}")
    return archive


def extract(archive: Path, vendor: str, folder: Path) -> tuple[list[dict], set[str]]:
    """Write the 64x64 pictures below `folder`, in one pass over the archive; return emoji.json and the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, pictures = None, set()
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                if member.name == "package/emoji.json":
                    entries = json.load(tar.extractfile(member))
                elif match := re.fullmatch(rf"package/img/{vendor}/64/([0-9a-f-]+\.png)", member.name):
                    (folder / match[1]).write_bytes(tar.extractfile(member).read())
                    pictures.add(match[1])
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{archive} is damaged ({error}): delete it and run again") from error
    if entries is None or not pictures:
        raise DataError(
            f"{archive} holds no emoji.json or no pictures of {vendor}: is it emoji-datasource-{vendor} {VERSION}?"
        )
    return entries, pictures


def records(entries: list[dict], pictures: set[str], phrasings: int) -> list[dict]:
    """One record for each caption of each picture: the first `phrasings` of them, or with 0 only the one that names the group."""
    found = []
    for entry in entries:
        for tones, picture in ({"": entry} | entry.get("skin_variations", {})).items():
            if picture["image"] in pictures:
                texts = captions(entry, tones)
                name = picture["image"].removesuffix(".png")
                for i, text in enumerate(texts[:phrasings] if phrasings else texts[1:2]):
                    found.append({"id": f"{name}/{i}", "image": picture["image"], "text": text})
    return found


def write_manifest(found: list[dict], path: Path) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, None, __doc__, add_flags=_flags)
