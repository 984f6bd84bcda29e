"""Messages and memory traffic: of compiled programs that we know, and of programs as a TPU compiler writes them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from launch.hlo import Collective, Program

TRIPS, WIDTH = 5, 256


@pytest.fixture(scope="module")
def program():
    """Eight devices: a product over the cut axis in each trip of a loop, and a gather at the end."""
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def on(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    def step(weights, x):
        x, _ = jax.lax.scan(lambda x, w: (jax.lax.with_sharding_constraint(x @ w, on(None, None)), None), x, weights)
        return jax.lax.with_sharding_constraint(x + 1, on())

    weights = jax.ShapeDtypeStruct((TRIPS, WIDTH, WIDTH), jnp.float32, sharding=on(None, "data", None))
    x = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32, sharding=on(None, "data"))
    return Program.parse(jax.jit(step).lower(weights, x).compile().as_text())


def test_a_loop_counts_as_often_as_it_runs(program):
    reduced = [one for one in program.collectives() if one.kind == "all-reduce"]
    assert [(one.group, one.count, one.size) for one in reduced] == [(4, TRIPS, TRIPS * WIDTH * WIDTH * 4.0)]


def test_every_weight_is_read_once(program):
    """A quarter of the weights on each device, and beside them activations that each trip reads and writes."""
    weights, x = TRIPS * WIDTH * WIDTH * 4 / 4, WIDTH * WIDTH * 4
    assert weights + TRIPS * 2 * x < program.memory_traffic() < weights + TRIPS * 10 * x


def test_what_a_ring_sends():
    assert Collective("all-reduce", 4, 1, 100.0).sent == 150.0
    assert Collective("all-gather", 4, 1, 100.0).sent == 75.0
    assert Collective("reduce-scatter", 4, 1, 100.0).sent == 75.0
    assert Collective("collective-permute", 2, 1, 100.0).sent == 100.0


TPU = """\
HloModule jit_step, is_scheduled=true

%fused (param_0: f32[64,8]) -> f32[256,8] {
  %param_0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.1 = f32[256,8]{1,0:T(8,128)} all-gather(%param_0), channel_id=7, replica_groups=mesh['a'=4,'b'=4] {'a'}, dimensions={0}
}

%fused.2 (param_0: f32[64,8]) -> f32[256,8] {
  %param_0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.2 = f32[256,8]{1,0:T(8,128)} all-gather(%param_0), channel_id=7, replica_groups=mesh['a'=4,'b'=4] {'a'}, dimensions={0}
}

%sliced (param_0: f32[6,64,8], param_1: s32[]) -> f32[64,8] {
  %param_0 = f32[6,64,8]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %dynamic-slice.1 = f32[1,64,8]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,64,8}
  ROOT %bitcast.1 = f32[64,8]{1,0:T(8,128)} bitcast(%dynamic-slice.1)
}

%body (carry: (s32[], f32[64,8], f32[6,64,8])) -> (s32[], f32[64,8], f32[6,64,8]) {
  %carry = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)S(1)}, /*index=2*/f32[6,64,8]{2,1,0:T(8,128)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = f32[64,8]{1,0:T(8,128)S(1)} get-tuple-element(%carry), index=1
  %stack = f32[6,64,8]{2,1,0:T(8,128)} get-tuple-element(%carry), index=2
  %slice.1 = f32[64,8]{1,0:T(8,128)S(1)} fusion(%stack, %count), kind=kLoop, calls=%sliced
  %all-reduce.1 = (f32[64,8]{1,0:T(8,128)S(1)}, bf16[8]{0:T(128)}) all-reduce(%slice.1, %x), channel_id=3, replica_groups=[4,4]<=[16], to_apply=%add
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)S(1)}, f32[6,64,8]{2,1,0:T(8,128)}) tuple(%count, %x, %stack)
}

%condition (carry.1: (s32[], f32[64,8], f32[6,64,8])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  %carry.1 = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)S(1)}, f32[6,64,8]{2,1,0:T(8,128)}) parameter(0)
  %count.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%count.1, %six), direction=LT
}

ENTRY %main (p: (s32[], f32[64,8], f32[6,64,8]), q: f32[64,8]) -> f32[256,8] {
  %p = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)}, f32[6,64,8]{2,1,0:T(8,128)}) parameter(0)
  %q = f32[64,8]{1,0:T(8,128)} parameter(1)
  %while.1 = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)S(1)}, f32[6,64,8]{2,1,0:T(8,128)}) while(%p), condition=%condition, body=%body
  %copy-start.1 = (f32[64,8]{1,0:T(8,128)S(1)}, f32[64,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%q)
  %copy-done.1 = f32[64,8]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %start = f32[256,8]{1,0:T(8,128)S(1)} fusion(%copy-done.1), kind=kCustom, calls=%fused
  ROOT %done = f32[256,8]{1,0:T(8,128)} fusion(%copy-done.1), kind=kCustom, calls=%fused.2
}
"""  # noqa: E501


SHARED = """\
%fused (param_0: f32[4,8]) -> f32[16,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[16,8]{1,0} all-gather(%param_0), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, metadata={op_name="jvp"}
}

%fused.2 (param_0: f32[4,8]) -> f32[16,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[16,8]{1,0} all-gather(%param_0), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, metadata={op_name="jvp"}
}

%fused.3 (param_0: f32[4,8]) -> f32[16,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.3 = f32[16,8]{1,0} all-gather(%param_0), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, metadata={op_name="transpose"}
}

ENTRY %main (p: f32[4,8]) -> f32[16,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %all-gather.4 = f32[16,8]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %all-gather.5 = f32[16,8]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %start = f32[16,8]{1,0} fusion(%p), kind=kCustom, calls=%fused
  %done = f32[16,8]{1,0} fusion(%p), kind=kCustom, calls=%fused.2
  %all-reduce.1 = f32[] all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %other = f32[16,8]{1,0} fusion(%p), kind=kCustom, calls=%fused.3
}
"""  # noqa: E501


def test_what_shard_map_asks_for_is_told_apart_on_one_channel():
    gathers = Collective("all-gather", 4, 4, 4 * 16 * 8 * 4.0)  # two alone, one spread over two fusions, and another
    assert Program.parse(SHARED).collectives() == [gathers, Collective("all-reduce", 4, 1, 4.0)]


def test_a_program_as_a_tpu_compiler_writes_it():
    program, one = Program.parse(TPU), 64 * 8 * 4.0
    assert program.times == {"main": 1, "body": 6}
    assert program.collectives() == [
        Collective("all-gather", 4, 1, 4 * one),  # of two fusions with one channel
        Collective("all-reduce", 4, 6, 6 * (one + 16)),
    ]
    # Six slices of the stack and what each trip reduces beyond the fast memory; the copy into it; the result.
    assert program.memory_traffic() == 6 * (one + 4 + 16) + one + 4 * one
