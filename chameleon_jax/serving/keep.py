"""The codes of a picture that a request keeps (`keep`), as the engine takes them."""

from __future__ import annotations

import numpy as np

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.grammar import UNRESTRICTED, written_rows
from chameleon_jax.generation.keep import REDRAW, Keep, kept_ids
from chameleon_jax.serving.errors import bad_request
from chameleon_jax.serving.schema import RequestFields
from chameleon_jax.vocab import Vocab


def kept_codes(request: RequestFields, config: GenerationConfig, vocab: Vocab) -> Keep | None:
    """Without a name they are of the one modality whose spans have markers that the mode writes.

    Raises ApiError for codes that cannot be kept.
    """
    if request.keep is None:
        return None
    name = request.keep.modality
    if name is None:
        rows = [] if config.mode == UNRESTRICTED else written_rows(vocab, config.mode)
        names = [vocab.names[row] for row in rows if row in vocab.marked]
        if len(names) != 1:
            found = f"may draw any of {', '.join(names)}: say keep.modality" if names else "draws none"
            raise bad_request(f"keep: codes are of a picture or another span, and mode '{config.mode}' {found}", "keep")
        [name] = names
    codes = [REDRAW if code is None else code for code in request.keep.codes]
    keep = Keep(modality=name, codes=np.array(codes, np.int64))
    try:
        kept_ids(keep, vocab, config)
    except ChameleonError as error:
        raise bad_request(f"keep: {error}", "keep") from None
    return keep
