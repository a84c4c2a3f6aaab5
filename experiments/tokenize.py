"""Turn text, pictures and other data into a token store that training reads.

Stop it at any time and run the same command again: it goes on at the first unfinished shard and ends with the same bytes.

Examples:
  python -m experiments.tokenize --gin_file=gin_configs/runs/emoji_tokenize.gin --gin.DATA=runs/emoji/data \\
      --gin.TOKENIZER=runs/emoji/tokenizer --workdir=runs/emoji/store/train
  python -m experiments.tokenize --gin_file=my_data.gin --gin.TokenizeConfig.max_reject_fraction=0.05 --workdir=runs/mine/store
"""

from pathlib import Path

from chameleon_jax import cli, summary
from chameleon_jax.configs import TokenizeConfig
from chameleon_jax.progress import count


def main(config: TokenizeConfig, args) -> None:
    from chameleon_jax.data.pipeline import tokenize

    report = tokenize(config, args.workdir)
    tokens, spans = (
        ", ".join(f"{count:,} {name}" for name, count in counts.items())
        for counts in (report.tokens_by_modality, report.spans_by_modality)
    )
    holds = f"{count(report.documents, 'document')} in {count(report.shards, 'shard')}"
    if whole := report.shards_found == report.shards:
        print(f"nothing to do: {report.output} holds all of it, {holds}")
    found = f", {report.shards_found:,} of them found" if report.shards_found else ""
    summary.show(
        report.seconds,
        {} if whole else {report.output: f"{holds}{found}"},
        {
            "spans": spans,
            "tokens": f"{report.tokens:,} ({tokens})",
            "rejected": f"{report.rejects:,} of {count(report.records, 'record')}",
        },
        _next(args),
    )
    for source, documents in report.text_alone.items():
        print(
            f"source '{source}' holds text alone: none of its {count(documents, 'document')} read now has anything else"
        )


def _next(args) -> list[summary.Next]:
    """A look at the store, and a run on it where the run file has one."""
    store = Path(args.workdir)
    train = store.with_name("train") if store.name == "heldout" else store
    stores = {"TRAIN": train} | ({"HELDOUT": train.with_name("heldout")} if train.with_name("heldout").is_dir() else {})
    flags = summary.following(args.gin_file, args.gin_bindings, ("_tokenize.gin", ".gin"), stores)
    parent = store.parent.parent if store.parent.name == "store" else store.parent
    pretrain = [("pretrain", [*flags, f"--workdir={parent / 'model'}"])] if flags and train.is_dir() else []
    return [("inspect", [store, "--show=8"]), *pretrain]


if __name__ == "__main__":
    cli.run(main, TokenizeConfig, __doc__)
