"""Programs are read as their compiler wrote them: loops, products, what travels, and where it comes from."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from chameleon_jax.compile_report.cause import Causes
from chameleon_jax.compile_report.collectives import collectives
from chameleon_jax.compile_report.cost import cost
from chameleon_jax.compile_report.hlo import Module, shapes_of
from chameleon_jax.configs import MeshConfig
from chameleon_jax.parallel.mesh import make_mesh

EXCERPTS = Path(__file__).parent / "excerpts"


def excerpt(name):
    return Module((EXCERPTS / f"{name}.txt").read_text())


def collective(line, devices=8):
    """The one collective of a program of one line."""
    program = f"HloModule m, num_partitions={devices}\n\nENTRY %main (p: f32[4]) -> f32[4] {{\n{line}\n}}\n"
    (found,) = collectives(module := Module(program), Causes(module))
    return found


def test_a_loop_of_layers_multiplies_what_it_holds():
    module = excerpt("v5p_gather_as_all_reduce")
    times = {run.computation.name: run.times for run in module.runs()}
    assert times == {"main": 1, "condition.1": 33, "body.1": 32}
    assert module.devices == 64 and not module.unknown_loops
    found = cost(module, Causes(module))
    assert found.flops == 32 * 2 * 8192 * 4096 * 11008
    assert (found.cycles(matrix=True), found.cycles(matrix=False)) == (32 * 3_000_000, 32 * 30_000)


def test_a_gather_written_as_all_reduce_is_told_with_the_line_that_uses_it():
    module = excerpt("v5p_gather_as_all_reduce")
    (found,) = collectives(module, Causes(module))
    assert (found.kind, found.is_gather, found.group, found.times, found.dtype) == ("all-reduce", True, 64, 32, "bf16")
    assert found.wire_bytes == pytest.approx(2 * 63 / 64 * 4096 * 11008 * 2)
    assert (found.dimensions, found.overlaps, found.cause) == (3, False, "forward, layers.py:175")


def test_a_loop_that_the_compiler_has_unrolled_is_counted_in_its_own_turns():
    """Four counted turns, two at a time, of two permutations each."""
    found = collectives(module := excerpt("v5e_windowed_product"), Causes(module))
    assert [(one.kind, one.times, one.bytes, one.overlaps) for one in found] == [
        ("collective-permute", 2, 512 * 4096 * 2, True)
    ] * 2


@pytest.mark.parametrize(
    ("line", "group", "sent"),
    [
        ("%a = f32[32]{0} all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", 4, 3 / 4 * 128),
        ("%a = f32[32]{0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}", 4, 3 / 4 * 128),
        ("%a = f32[32]{0} all-gather(%p), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", 2, 1 / 2 * 128),
        ("%a = f32[32]{0} all-gather(%p), replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}", 4, 3 / 4 * 128),
        ("%a = f32[32]{0} all-gather(%p), replica_groups=mesh['x'=8] {'x':(1)2}, dimensions={0}", 2, 1 / 2 * 128),
        ("%a = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), replica_groups={}, dimensions={0}", 8, 7 / 8 * 128),
        ("%a = f32[4]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8], to_apply=%s", 8, 7 / 8 * 128),
        ("%a = (f32[4]{0}, bf16[8]{0}) all-reduce(%p, %q), replica_groups=[1,8]<=[8], to_apply=%s", 8, 2 * 7 / 8 * 32),
        ("%a = f32[4]{0} all-to-all(%p), replica_groups=[1,8]<=[8], dimensions={0}", 8, 7 / 8 * 16),
        ("%a = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", 8, 16),
    ],
)
def test_bytes_on_the_wire_are_those_of_a_ring(line, group, sent):
    found = collective(f"  {line}")
    assert (found.group, found.wire_bytes) == (group, sent)


def test_what_is_started_and_ended_apart_is_counted_once():
    line = (
        "  %a = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}\n"
    )
    found = collective(line + "  %b = f32[32]{0} all-gather-done(%a)")
    assert found.overlaps and found.total == 112


def test_shapes_have_their_bytes_whatever_the_layout():
    text = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s4[8]{0}, f8e4m3fn[5]{0}, pred[], token[])"
    assert [(str(shape), shape.bytes) for shape in shapes_of(text)] == [
        ("bf16[2,3]", 12), ("s4[8]", 4), ("f8e4m3fn[5]", 5), ("pred[]", 1), ("token[]", 0),
    ]  # fmt: skip


def test_a_kernel_whose_notes_fill_lines_hides_nothing_behind_it():
    """Splash attention: two products of 512 by 512 over 128, half of it masked, for each of 2 rows and 4 heads."""
    program = """HloModule m

ENTRY %main (q: bf16[2,4,512,128], k: bf16[2,4,512,128]) -> f32[2] {
  %q = bf16[2,4,512,128]{3,2,1,0} parameter(0)
  %k = bf16[2,4,512,128]{3,2,1,0} parameter(1)
  %splash_mha_fwd_segmented.1 = bf16[2,4,512,128]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(f)/jvp()/pallas_call"}
  %all-reduce.1 = f32[2]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%sum
}
"""
    module = Module(program)
    assert len(collectives(module, Causes(module))) == 1
    found = cost(module, Causes(module))
    assert (found.kernels, found.kernel_flops) == (1, 2 * 4 * 2 * 2 * 512 * 512 * 128 / 2)


def test_a_loop_whose_end_the_data_say_is_one_turn_and_told():
    def search(x):
        return jax.lax.while_loop(lambda x: (x > 1).any(), lambda x: x * 0.5, x)

    module = Module(jax.jit(search).lower(jnp.ones(4)).compile().as_text())
    assert {run.times for run in module.runs()} <= {1, 2} and len(module.unknown_loops) == 1


@pytest.mark.parametrize("layers", [2, 5])
def test_a_real_program_moves_its_divided_weights_as_often_as_it_has_layers(layers):
    """Gathered forward and backward, reduced once, on eight simulated devices; nothing else is large."""
    mesh = make_mesh(MeshConfig(fsdp=8))
    width, rows = 128, 64

    def loss(weights, x):
        hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)
        return (hidden**2).sum()

    placed = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=placed)
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp", None)))
    module = Module(jax.jit(jax.grad(loss), out_shardings=placed).lower(weights, x).compile().as_text())
    assert module.devices == 8 and not module.unknown_loops
    found = collectives(module, Causes(module))
    matrix = 4 * width * width
    gathered = sum(one.times * one.bytes for one in found if one.kind == "all-gather")
    reduced = sum(one.times * one.bytes for one in found if one.kind in ("all-reduce", "reduce-scatter"))
    assert gathered == layers * 2 * matrix
    assert layers * matrix <= reduced <= layers * matrix + 64
    products = 3 * 2 * (rows // 8) * width * width
    assert cost(module, Causes(module)).flops == layers * products
