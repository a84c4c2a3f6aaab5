"""Tables for people: what a configuration, run, checkpoint, token store or tokenizer bundle holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh, Mesh
from rich.console import Console
from rich.table import Table

from chameleon_jax import commands
from chameleon_jax.checkpoints.manifest import MANIFEST
from chameleon_jax.checkpoints.restore import ARRAYS, numbered_steps
from chameleon_jax.configs import CheckpointConfig, PretrainConfig, TransformerConfig
from chameleon_jax.errors import ChameleonError, CheckpointError, TokenizerError
from chameleon_jax.models import params, transformer
from chameleon_jax.models.params import ParamSpec
from chameleon_jax.parallel.mesh import DECODING, TRAINING, check_model_fits
from chameleon_jax.training.pretraining import complete
from chameleon_jax.workdir import BUNDLE, CHECKPOINTS, RUN, STORE, TOKENIZER, VOCAB, has_begun

STEPS = "checkpoints"


def print_parameters(config: TransformerConfig) -> None:
    """Every parameter with its axes and shape, and the counts of the parts."""
    specs = transformer.param_specs(config)
    table = Table("parameter", "axes", "shape", "init", "count", title="Parameters")
    table.columns[-1].justify = "right"

    def add(tree: dict | ParamSpec, path: str) -> None:
        if isinstance(tree, ParamSpec):
            init = f"normal {tree.std:.2g}" if tree.init == "normal" else tree.init
            table.add_row(path, tree.axes, " x ".join(map(str, tree.shape)), init, f"{tree.size:,}")
            return
        for name, part in tree.items():
            add(part, f"{path}/{name}" if path else name)

    add(specs, "")
    table.add_section()
    parts = {"embed": specs["embed"], "head": specs["head"], "norms": specs["norm"]}
    parts |= {f"layers/{name}": specs["layers"][name] for name in ("attn", "mlp")}
    for name, part in parts.items():
        table.add_row(f"sum of {name}", "", "", "", f"{params.count(part):,}")
    table.add_row("total", "", "", "", f"{params.count(specs):,}", style="bold")
    flops = transformer.flops_per_token(config, config.max_seq_len)
    _print(table)
    Console().print(f"{flops:,.0f} FLOPs a token for forward and backward at {config.max_seq_len} tokens")


def print_sharding(config: TransformerConfig, mesh: Mesh | AbstractMesh) -> None:
    """How the parameters lie on the mesh, and their bytes on each device. Raises ConfigError if it does not divide them."""
    check_model_fits(config, mesh)
    print(params.sharding_table(transformer.param_specs(config), mesh, TRAINING))


def print_path(path: str, *, verify: bool, mesh: Mesh | AbstractMesh | None = None) -> None:
    """Find out what `path` is and describe it; with `verify`, read and check every byte first.

    Of a run it also tells how the parameters would lie on `mesh`; `verify` then reads them straight to their places on it.

    Raises ChameleonError when it is nothing that this package writes, and, once the tables are printed, for damage that `verify`
    found: of a step, or a tokenizer that is not the one of the ids.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ChameleonError(f"{path} is not a folder")
    kind = kind_of(folder)
    if mesh is not None and kind != RUN:
        raise ChameleonError(f"--mesh lays out the model of a run: {path} has no checkpoints/ in it")
    if kind == BUNDLE:
        _print_bundle(folder)
    elif kind == STORE:
        _print_store(folder, verify)
    elif kind == RUN:
        _print_run(folder, verify, mesh)
    elif kind == STEPS:
        _print_checkpoints(folder, verify, None)
    else:
        raise ChameleonError(f"{path} is no token store, tokenizer bundle, run or checkpoint folder")


def kind_of(folder: Path) -> str | None:
    """BUNDLE, STORE, RUN or STEPS; None where it is nothing that this package writes."""
    if (folder / VOCAB).exists() and (folder / "tokenizer.json").exists():
        return BUNDLE
    if (folder / "commits").is_dir():
        return STORE
    if (folder / CHECKPOINTS).is_dir() or has_begun(folder):
        return RUN
    steps = (child for child in folder.iterdir() if child.name.isdigit()) if folder.is_dir() else ()
    return STEPS if any((step / MANIFEST).is_file() or (step / ARRAYS).is_dir() for step in steps) else None


def _print_store(folder: Path, verify: bool) -> None:
    from chameleon_jax.data import store

    opened = store.verify(folder) if verify else store.TokenStore.open(folder)
    summary = opened.summary()
    table = Table("token store", str(folder))
    for name, value in vars(summary).items():
        if name != "path":
            table.add_row(name.replace("_", " "), _text(value))
    if verify:
        table.add_row("verified", "every shard")
    _print(table)
    if verify:
        _check_tokenizer(folder, opened.bundle_fingerprint)


def _print_bundle(folder: Path) -> None:
    from chameleon_jax.tokenizers.bundle import TokenizerBundle

    bundle = TokenizerBundle.load(folder)
    vocab = bundle.vocab
    table = Table("tokenizer", str(folder))
    table.add_row("fingerprint", bundle.fingerprint())
    table.add_row("ids", f"{vocab.size:,}")
    for modality in vocab.modalities:
        table.add_row(f"{modality.name} ids", f"{modality.start:,} to {modality.stop - 1:,}, {modality.grammar}")
    special = {name: getattr(vocab, name) for name in ("bos", "pad", "eos", "unk", "end_of_turn", "placeholder")}
    for m in vocab.marked.values():
        special |= {f"begin of {m.name}": m.begin_marker, f"end of {m.name}": m.end_marker}
    table.add_row("special ids", ", ".join(f"{name} {id}" for name, id in special.items()))
    if added := bundle.vocab_config.added:
        table.add_row("added ids", ", ".join(f"{name} {id}" for name, id in bundle.added_ids.items()))
        table.add_row("extends", f"{bundle.with_added(()).fingerprint()} by {len(added)} ids")
    for name, codec in bundle.codecs.items():
        table.add_row(f"codec of {name}", codec.describe())
    _print(table)


def _print_run(folder: Path, verify: bool, mesh: Mesh | AbstractMesh | None) -> None:
    from chameleon_jax.checkpoints.checkpointer import Checkpointer

    # A converted model has no config.json, a run that has just begun no checkpoint.
    saved = Checkpointer(folder / CHECKPOINTS, CheckpointConfig()).metadata()
    if not saved and not (folder / "config.json").is_file():
        raise CheckpointError(f"no step in {folder / CHECKPOINTS} has a readable {MANIFEST}: copy a good step back")
    config = saved["config"] if saved else json.loads((folder / "config.json").read_text())
    model = TransformerConfig.from_dict(config["model"])
    if not model.vocab_size:  # a run that has saved nothing has only what it was given
        model = complete(PretrainConfig.from_dict(config)).model
    if mesh is not None:
        check_model_fits(model, mesh)  # before a page of tables
    print_parameters(model)
    if mesh is not None:
        print_sharding(model, mesh)
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    if lines:
        last = json.loads(lines[-1])
        table = Table("last logged step", str(last["step"]))
        for name, value in last.items():
            if isinstance(value, (int, float)) and name != "step":
                table.add_row(name, _text(value))
        _print(table)
    wanted = params.abstract(transformer.param_specs(model), mesh, DECODING) if isinstance(mesh, Mesh) else None
    if not numbered_steps(folder / CHECKPOINTS):
        _print_unsaved(folder, json.loads(lines[-1])["step"] if lines else 0, config["checkpoint"]["every_steps"])
        if verify:
            raise CheckpointError(
                f"no checkpoint to verify in {folder / CHECKPOINTS}: wait for a save, or copy a step back"
            )
        return
    _print_checkpoints(folder / CHECKPOINTS, verify, wanted)
    # Runs older than the table of modalities noted a fingerprint of another spelling.
    if verify and saved and "modalities" in (saved.get("vocab_config") or {}):
        _check_tokenizer(folder, saved.get("tokenizer"))


def _print_unsaved(folder: Path, logged: int, every_steps: int) -> None:
    """What a run without a step can do: one that is past its first save has lost it."""
    if logged > every_steps:
        print(f"step {logged:,} is logged, but no checkpoint is there any more: copy one back, or begin again with")
    else:
        print("nothing is saved yet: wait for the first save, or go on with")
    print(commands.typed("pretrain", [f"--gin_file={folder / 'config.gin'}", f"--workdir={folder}"]))


def _check_tokenizer(folder: Path, noted: str | None) -> None:
    """Raise TokenizerError where the tokenizer beside the ids is not the one that made them."""
    from chameleon_jax.tokenizers.bundle import TokenizerBundle

    kept = folder / TOKENIZER
    if noted is None or not kept.is_dir():
        return
    if (found := TokenizerBundle.load(kept).fingerprint()) != noted:
        raise TokenizerError(f"{kept} is tokenizer {found}, but the ids are those of {noted}: put the right one there")


def _print_checkpoints(folder: Path, verify: bool, abstract_params: Any) -> None:
    from chameleon_jax.checkpoints.manifest import read_manifest
    from chameleon_jax.checkpoints.restore import restore_subtree
    from chameleon_jax.checkpoints.verify import first_damage_on_disk

    table = Table("step", "leaves", "numbers", "data", "state", title=f"Checkpoints in {folder}")
    damaged = []
    for child in sorted((c for c in folder.iterdir() if c.name.isdigit()), key=lambda c: int(c.name)):
        try:
            manifest = read_manifest(child)
            numbers = sum(leaf.size for leaf in manifest.leaves.values())
            state = "listed"
            if verify:
                damage = first_damage_on_disk(manifest.leaves, child / ARRAYS)
                if damage is None and abstract_params is not None:
                    restore_subtree(child, "params", abstract_params)
                state = "verified" if damage is None else f"not usable: {damage}"
                damaged += [child.name] if damage is not None else []
            table.add_row(
                child.name,
                str(len(manifest.leaves)),
                f"{numbers:,}",
                manifest.metadata.get("data_fingerprint", ""),
                state,
            )
        except (ChameleonError, OSError, ValueError) as error:
            table.add_row(child.name, "", "", "", f"not usable: {error}")
            damaged.append(child.name)
    _print(table)
    if verify and damaged:
        raise CheckpointError(f"not usable of {folder}: {', '.join(damaged)}; the table above says why")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print(table: Table) -> None:
    # A pipe has no width; a table that is cut there would be useless.
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)
