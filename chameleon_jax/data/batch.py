"""The batch: what the loader makes and the train step takes."""

from __future__ import annotations

import flax.struct
from jaxtyping import Array, Float, Int, UInt8


@flax.struct.dataclass
class Batch:
    """B rows of T tokens; NumPy on the host, global `jax.Array`s sharded over the mesh on devices.

    Rows hold whole documents one after the other. `targets[t]` is `tokens[t + 1]` inside a document; the last token of a
    document and padding have weight 0. `segment_ids` count documents in a row from 1, padding is 0. `positions` restart at 0
    in every document. `modality` is the row of the modality table of the *target*, `input_modality` that of the token itself.

    `pictures` are the perceived ones of each row, in order, and then nothing but zeros; I is the most that any row of the run
    has. None where no row has any. The k-th placeholder of a row is the place of the k-th patch of its pictures.
    """

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    loss_weights: Float[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    modality: Int[Array, "B T"]
    input_modality: Int[Array, "B T"]
    pictures: UInt8[Array, "B I H W 3"] | None = None
