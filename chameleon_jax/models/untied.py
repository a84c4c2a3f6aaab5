"""Parameters by modality: every position uses those of its own input's modality, while attention sees the whole sequence.

Mixture-of-transformers (Liang et al. 2024, section 2; arXiv 2411.04996). The route of a position is known before the model runs, so
nothing is learned or balanced, and shapes must only be static.

Products. Computing all M variants and selecting costs M times the products of a tied model. Instead the positions of each shard
of the batch are sorted by modality and cut into chunks of equal size, and for each modality a loop runs over the chunks that hold
any of it: K chunks cost at most K + M - 1 products of a chunk. The bounds of the loop are values, so all shapes are static. A
modality that is absent costs nothing, and its weights are not read, which is what a decoding step needs. Few positions are one
chunk and are not sorted. Shards run the same loop, each on its own rows, so no token crosses the mesh. Where their shares of a
modality differ, a chunk is computed for every modality that any of them has there.

Why not `jax.lax.ragged_dot`: on a CPU its value and gradient take 2.5 to 3 times the processor time of a tied product, more than
computing all variants and selecting (`benchmarks/untied.py`). On TPUs, where it has a kernel of its own, nobody has measured yet.
"""

from __future__ import annotations

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from chameleon_jax.models.layers import like, linear
from chameleon_jax.models.quantize import Int8Matrix
from chameleon_jax.parallel.mesh import ShardingRules, batch_shards, constrain, constrain_stored

SAVED_NAME = "untied_product"  # checkpoint name of products, which the remat policy "dots" keeps

_CHUNKS = 16  # at most a sixteenth more products for each modality beyond the first
_CHUNK_ROWS = 128  # smaller products are slower than the work that they save

Kernel = Array | Int8Matrix | tuple[Array | Int8Matrix, ...]  # [M *inputs *outputs], or one matrix for each modality


@flax.struct.dataclass
class Routes:
    """The modality of every position, and its place in products. Rows of the batch are divided over S shards of n positions.

    Padding has modality M, for which there are no parameters: products and norms give 0 there. `begin` and `end` bound the chunks
    of sorted positions in which a modality occurs on any shard.
    """

    modality: Int[Array, "B T"]
    sorted: Int[Array, "S n"]  # modality of the positions in the order of products
    order: Int[Array, "S n"] | None  # position at each place; None where positions are not sorted
    places: Int[Array, "S n"] | None  # place of each position
    begin: Int[Array, "M"]
    end: Int[Array, "M"]
    chunk: int = flax.struct.field(pytree_node=False)


def route(modality: Int[Array, "B T"], segment_ids: Int[Array, "B T"], count: int, rules: ShardingRules) -> Routes:
    """Routes of a batch for `count` modalities; positions of segment 0 are padding."""
    modality = constrain(jnp.where(segment_ids > 0, modality, count).astype(jnp.int32), "B T", rules)
    shards = math.gcd(modality.shape[0], batch_shards(rules))
    ids = modality.reshape(shards, -1)
    positions = ids.shape[1]
    chunk = _chunk_size(positions)
    order = places = None
    if chunk < positions:
        order = jnp.argsort(ids, axis=1, stable=True)
        places, ids = jnp.argsort(order, axis=1), jnp.take_along_axis(ids, order, axis=1)
    chunks = ids.reshape(shards, -1, chunk, 1)
    present = jnp.any(chunks == jnp.arange(count), axis=(0, 2))
    begin = jnp.argmax(present, axis=0)
    end = jnp.where(jnp.any(present, axis=0), len(present) - jnp.argmax(present[::-1], axis=0), 0)
    return Routes(modality=modality, sorted=ids, order=order, places=places, begin=begin, end=end, chunk=chunk)


def _chunk_size(positions: int) -> int:
    """A divisor near a sixteenth of the positions; all of them where they are few, or where nothing near divides them."""
    wanted = max(_CHUNK_ROWS, -(-positions // _CHUNKS))
    if positions <= 2 * _CHUNK_ROWS:
        return positions
    near = [chunk for chunk in range(-(-wanted // 2), 2 * wanted + 1) if positions % chunk == 0]
    return min(near, key=lambda chunk: abs(math.log(chunk / wanted)), default=positions)


def to_places(x: Float[Array, "B T *rest"], routes: Routes) -> Float[Array, "S n *rest"]:
    """Positions in the order of products."""
    x = x.reshape(*routes.sorted.shape, *x.shape[2:])
    return x if routes.order is None else _permuted(x, routes.order, routes.places)


def to_positions(x: Float[Array, "S n *rest"], routes: Routes) -> Float[Array, "B T *rest"]:
    """Inverse of `to_places`."""
    x = x if routes.order is None else _permuted(x, routes.places, routes.order)
    return x.reshape(*routes.modality.shape, *x.shape[2:])


@jax.custom_vjp
def _permuted(x: Array, order: Array, inverse: Array) -> Array:
    """The gradient is a permutation too, where that of indexing would be a scatter."""
    return jax.vmap(lambda rows, at: rows.at[at].get(mode="promise_in_bounds", unique_indices=True))(x, order)


_permuted.defvjp(
    lambda x, order, inverse: (_permuted(x, order, inverse), (order, inverse)),
    lambda residuals, gradient: (_permuted(gradient, residuals[1], residuals[0]), None, None),
)


def product(
    x: Float[Array, "S n *inputs"], kernel: Kernel, axes: str, routes: Routes, rules: ShardingRules
) -> Float[Array, "S n *outputs"]:
    """`layers.linear` of each position with its modality's matrix; `axes` are a matrix's letters, as in "D N H".

    The weight gradient, of a stacked kernel alone, is summed in fp32: a shard sums its own chunks, and shards are added once.
    """
    return checkpoint_name(_product(x, kernel, routes, axes, rules), SAVED_NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _product(x, kernel, routes, axes, rules):
    inputs = x.ndim - 2
    matrices = [_compute_form(matrix, x.dtype, axes, rules) for matrix in _matrices(kernel, len(routes.begin))]
    out = jnp.zeros((*x.shape[:2], *matrices[0].shape[inputs:]), x.dtype)
    out = constrain(out, " ".join(["B", "T", *axes.split()[inputs:]]), rules)
    return _by_chunk(x, out, routes, lambda part, m: linear(part, matrices[m]))


def _product_forward(x, kernel, routes, axes, rules):
    return _product(x, kernel, routes, axes, rules), (x, kernel, routes)


def _product_backward(axes, rules, residuals, gradient):
    x, kernel, routes = residuals
    inputs, count = x.ndim - 2, len(routes.begin)
    width = math.prod(x.shape[2:])

    def towards_inputs(part: Float[Array, "S c *outputs"], m: int) -> Float[Array, "S c *inputs"]:
        matrix = _compute_form(kernel[m], x.dtype, axes, rules).reshape(width, -1)
        rows = part.reshape(-1, matrix.shape[1]) @ matrix.T
        return rows.reshape(*part.shape[:2], *x.shape[2:])

    d_x = constrain(jnp.zeros_like(x), " ".join(["B", "T", *axes.split()[:inputs]]), rules)
    d_x = _by_chunk(gradient, d_x, routes, towards_inputs)

    def of_matrix(m: int) -> Float[Array, "*inputs *outputs"]:
        shape = (x.shape[0], width, kernel[m].size // width)

        def add(k: Array, total: Float[Array, "S I O"]) -> Float[Array, "S I O"]:
            rows, slopes, ids = (_chunk(whole, k, routes) for whole in (x, gradient, routes.sorted))
            rows = jnp.where(like(ids == m, rows), rows, 0).reshape(*ids.shape, -1)
            slopes = slopes.reshape(*ids.shape, -1)
            return total + jnp.einsum("sci,sco->sio", rows, slopes, preferred_element_type=jnp.float32)

        total = constrain(jnp.zeros((x.shape[0], *kernel[m].shape), jnp.float32), f"B {axes}", rules).reshape(shape)
        total = jax.lax.fori_loop(routes.begin[m], routes.end[m], add, total)
        # As `embed`: each device sums its own shard first, then the sum goes to where the parameter is stored.
        total = constrain(jnp.sum(total, axis=0).reshape(kernel[m].shape), axes, rules)
        return constrain_stored(total, axes, rules).astype(kernel.dtype)

    return d_x, jnp.stack([of_matrix(m) for m in range(count)]), None


_product.defvjp(_product_forward, _product_backward)


def _matrices(kernel: Kernel, count: int) -> list[Array | Int8Matrix]:
    if isinstance(kernel, tuple):
        return list(kernel)
    return [jax.tree.map(lambda leaf: leaf[m], kernel) for m in range(count)]  # noqa: B023


def _compute_form(matrix: Array | Int8Matrix, dtype: jnp.dtype, axes: str, rules: ShardingRules) -> Array | Int8Matrix:
    """Cast, and gathered over the mesh, ahead of the loop."""
    return matrix if isinstance(matrix, Int8Matrix) else constrain(matrix.astype(dtype), axes, rules)


def _by_chunk(x, out, routes, multiply):
    """`out` with `multiply(chunk of x, m)` at the places of modality m, for every m."""
    for m in range(len(routes.begin)):

        def put(k: Array, out: Array, m: int = m) -> Array:
            made = multiply(_chunk(x, k, routes), m)
            mine = like(_chunk(routes.sorted, k, routes) == m, made)
            made = jnp.where(mine, made, _chunk(out, k, routes))
            return jax.lax.dynamic_update_slice_in_dim(out, made, k * routes.chunk, axis=1)

        out = jax.lax.fori_loop(routes.begin[m], routes.end[m], put, out)
    return out


def _chunk(whole: Array, k: Array, routes: Routes) -> Array:
    return jax.lax.dynamic_slice_in_dim(whole, k * routes.chunk, routes.chunk, axis=1)
