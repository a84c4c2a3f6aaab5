"""The kernels for accelerators equal the reference on packed rows, whichever mesh divides them; on the CPU they are interpreted."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from chameleon_jax.configs import MeshConfig, TransformerConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.models import kv_cache, params, transformer
from chameleon_jax.models.attention import reference, splash, triton
from chameleon_jax.models.attention.mask import SAVED_NAME, MaskSpec
from chameleon_jax.models.attention.registry import attention
from chameleon_jax.parallel.mesh import AXES, DECODING, TRAINING, divided, make_mesh

ROWS, LENGTH, HEADS, HEAD = 4, 384, 4, 128  # three blocks a row
INTERPRETED = {
    name: functools.partial(module.attend, interpret=True) for name, module in (("splash", splash), ("triton", triton))
}
SCALE = {"float32": 1e-5, "bfloat16": 2e-2}


def packed_rows():
    """One long segment; two that part inside of a block; many short ones; padding in more than half of the row."""
    many = np.arange(LENGTH) // 7 + 1
    half = np.where(np.arange(LENGTH) < 100, 1, 0)
    two = np.where(np.arange(LENGTH) < 130, 1, 2)
    segments = jnp.asarray(np.stack([np.ones(LENGTH, int), two, many, half]), jnp.int32)
    return MaskSpec(query_segments=segments, key_segments=segments)


def arrays(kv_heads, dtype):
    rng = np.random.default_rng(0)
    shapes = ((ROWS, LENGTH, HEADS, HEAD), (ROWS, kv_heads, LENGTH, HEAD), (ROWS, kv_heads, LENGTH, HEAD))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def values_and_gradients(attend, given, mask):
    weight = jnp.asarray(np.random.default_rng(1).normal(size=given[0].shape), jnp.float32)

    def loss(given):
        out = attend(*given, mask, chunk=64, max_logit=True, rules=TRAINING)
        return jnp.sum(out.values * weight), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
    return {
        "values": out.values,
        "max_logit": out.max_logit,
        **dict(zip(("query", "key", "value"), gradient, strict=True)),
    }


def assert_close(ours, theirs, dtype):
    for name, expected in theirs.items():
        found, expected = np.asarray(ours[name], np.float32), np.asarray(expected, np.float32)
        error = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
        assert error <= SCALE[dtype], f"{name}: {error}"


@pytest.mark.parametrize("backend", ["splash", "triton"])
@pytest.mark.parametrize(("dtype", "kv_heads", "mesh"), [("float32", 2, (2, 2, 2)), ("bfloat16", 4, (1, 1, 1))])
def test_kernels_equal_the_reference_in_values_gradients_and_largest_logit(backend, dtype, kv_heads, mesh):
    given, mask = arrays(kv_heads, dtype), packed_rows()
    expected = values_and_gradients(reference.attend, given, mask)
    data, fsdp, tensor = mesh
    config = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    with jax.set_mesh(make_mesh(config, jax.devices()[: data * fsdp * tensor])):
        assert_close(values_and_gradients(INTERPRETED[backend], given, mask), expected, dtype)


def test_rematerialisation_that_keeps_attention_keeps_what_the_backward_kernel_needs(capsys):
    ones = jnp.ones((1, LENGTH), jnp.int32)
    given = tuple(jnp.ones(shape) for shape in ((1, LENGTH, 1, HEAD), (1, 1, LENGTH, HEAD), (1, 1, LENGTH, HEAD)))

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(SAVED_NAME))
    def block(given):
        mask = MaskSpec(query_segments=ones, key_segments=ones)
        return INTERPRETED["splash"](*given, mask, chunk=64, max_logit=False, rules=TRAINING).values.sum()

    jax.ad_checkpoint.print_saved_residuals(block, given)
    made = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    assert {"f32[1,1,384,128]", "f32[1,1,384]"} <= set(made)  # values and log sums


@pytest.mark.parametrize(
    ("platform", "length", "rows", "missing"),
    [
        ("tpu", 128, 4, ""),
        ("tpu", 192, 4, "rows of 192 tokens, which is not a multiple of 128"),
        ("tpu", 128, 2, "rows or heads that are not a multiple of the devices"),
        ("cpu", 128, 4, "platform cpu"),
    ],
)
def test_auto_takes_splash_by_the_devices_of_the_mesh_and_passes_it_over_where_it_would_be_refused(
    platform, length, rows, missing
):
    device = AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    mesh = AbstractMesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    shapes = ((rows, length, 4, 128), (rows, 4, length, 128), (rows, 4, length, 128))

    def traced(backend):
        def attend(*given):
            ones = jnp.ones((rows, length), jnp.int32)
            mask = MaskSpec(query_segments=ones, key_segments=ones)
            return attention(*given, mask, backend=backend, chunk=64).values

        with jax.sharding.use_abstract_mesh(mesh):
            return str(jax.make_jaxpr(attend)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))

    assert ("pallas_call" in traced("auto")) == (not missing)
    with pytest.raises(ConfigError, match=missing) if missing else contextlib.nullcontext():
        traced("splash")


def test_a_mesh_of_one_device_divides_nothing_whatever_its_axes_are_called():
    with jax.set_mesh(jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("alone",))):
        assert divided(jnp.ones((3, 5)), "B T", TRAINING)


def test_the_kernels_for_gpus_lower_for_cuda_in_both_directions_where_they_are_asked_for():
    device = AbstractDevice(device_kind="any", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    given = tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((1, 256, 4, HEAD), *[(1, 2, 256, HEAD)] * 2))

    def kernels(backend):
        def loss(given):
            ones = jnp.ones((1, 256), jnp.int32)
            mask = MaskSpec(query_segments=ones, key_segments=ones)
            return attention(*given, mask, backend=backend, chunk=64).values.astype(jnp.float32).sum()

        with jax.sharding.use_abstract_mesh(mesh):
            return (
                jax.jit(jax.grad(loss)).trace(given).lower(lowering_platforms=("cuda",)).as_text().count("gpu.triton")
            )

    assert kernels("triton") == 3  # forward, a sum for the backward pass, backward
    assert kernels("auto") == 0


@pytest.mark.parametrize("backend", ["splash", "triton"])
def test_a_run_that_names_a_kernel_for_packed_rows_also_generates(backend):
    config = TransformerConfig(
        vocab_size=32, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=4, d_ff=8, attention=backend
    )
    weights = params.abstract(transformer.param_specs(config))
    ids = jax.ShapeDtypeStruct((1, 3), jnp.int32)

    def forward(weights, ids, cache):
        return transformer.forward(weights, ids, ids, ids, config, cache=cache, rules=DECODING).hidden

    cache = jax.eval_shape(lambda: kv_cache.create(config, 1, 8, DECODING))
    assert jax.eval_shape(forward, weights, ids, cache).shape == (1, 3, 8)
    with pytest.raises(ConfigError, match=f"attention backend '{backend}' cannot do rows of 3 tokens"):
        jax.eval_shape(forward, weights, ids, None)
