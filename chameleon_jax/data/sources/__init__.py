"""Raw data to documents: one reader for each container, one parser for each schema.

Every record of a source yields exactly one thing, a `Document` or a `Reject` with its reason, always in the same
order. So a run can stop after N things and start again at N. docs/tokenize.md shows a record of each schema.
"""

from chameleon_jax.data.sources.apart import require_apart, require_apart_from
from chameleon_jax.data.sources.fingerprint import fingerprint
from chameleon_jax.data.sources.reading import estimate_records, field_names, read_documents
from chameleon_jax.data.sources.recognise import described, source_of
from chameleon_jax.data.sources.records import Reject, by_reason
from chameleon_jax.progress import printable

__all__ = [
    "Reject",
    "by_reason",
    "described",
    "estimate_records",
    "field_names",
    "fingerprint",
    "printable",
    "read_documents",
    "require_apart",
    "require_apart_from",
    "source_of",
]
