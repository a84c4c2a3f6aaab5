"""Turn text, pictures and other data into a token store that training reads.

Stop it at any time and run the same command again: it goes on at the first unfinished shard and ends with the same bytes.

Examples:
  python -m experiments.tokenize --gin_file=gin_configs/runs/emoji_tokenize.gin --workdir=runs/emoji/store
  python -m experiments.tokenize --gin_file=my_data.gin --gin.TokenizeConfig.max_reject_fraction=0.05 --workdir=runs/mine/store
"""

from chameleon_jax import cli
from chameleon_jax.configs import TokenizeConfig
from chameleon_jax.data.pipeline import tokenize


def main(config: TokenizeConfig, args) -> None:
    report = tokenize(config, args.workdir)
    tokens, spans = (
        ", ".join(f"{count:,} {name}" for name, count in counts.items())
        for counts in (report.tokens_by_modality, report.spans_by_modality)
    )
    print(
        f"{report.output}: {report.documents:,} documents with spans of {spans}; {report.tokens:,} tokens ({tokens}) in "
        f"{report.shards} shards ({report.shards_found} found), {report.rejects:,} of {report.records:,} records rejected, "
        f"{report.seconds:.1f} s"
    )
    for source, documents in report.text_alone.items():
        print(f"source '{source}' holds text alone: none of its {documents:,} documents read now has anything else")


if __name__ == "__main__":
    cli.run(main, TokenizeConfig, __doc__)
