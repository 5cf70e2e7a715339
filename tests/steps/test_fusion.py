"""Every way to fuse makes what the golden vectors and the plain reference say, whole and in pieces."""

from dataclasses import replace

import pytest
import torch
from common import demo_geometry, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU, KERNEL_DEVICE
from waves import golden_fusion, golden_weights, wave

from engram_exp.layer.fusion import FusionWeights, gate_of
from engram_exp.layer.weights import ProjectionWeights
from engram_exp.machine.placement import Placement
from engram_exp.steps.fusion.gated import GatedFusion
from engram_exp.steps.fusion.gated_conv import GatedConvFusion
from engram_exp.steps.fusion.numba import NumbaFusion
from engram_exp.steps.fusion.plain import PlainFusion
from engram_exp.steps.fusion.triton import TritonFusion

WAYS = [PlainFusion, NumbaFusion, TritonFusion]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def fused_by(way, weights, keys, value, hidden, *history, lead=0):
    """Of [B, L, ...] tensors, [B, L - lead, M, C]."""
    placement = Placement(KERNEL_DEVICE) if way is TritonFusion else CPU
    device, (sequences, length) = placement.device, keys.shape[:2]
    built = way(weights.to(device), sequences * (length - lead), placement, lead)
    flat = (tensor.flatten(0, 1).to(device) for tensor in (keys, value, hidden.contiguous()))
    return built(*flat, *(tensor.to(device) for tensor in history)).cpu().unflatten(0, (sequences, length - lead))


def no_history(weights, sequences):
    copies, channels = weights.query_norm.shape
    shape = sequences, weights.reach
    return torch.zeros(*shape, channels, dtype=weights.query_norm.dtype), torch.zeros(*shape, copies)


def golden_inputs(way=None):
    """Raw keys, value and hidden state of the golden layer, and what it must make of them, without the residual. Of
    Triton's interpreter, which takes milliseconds for each token, the first half of each sequence: more than its
    convolution reaches."""
    expected = {name: torch.from_numpy(array) for name, array in golden("forward").items()}
    weights = replace(golden_weights(), norms_keys=False)
    keys, value = weights.project(expected["embeddings"].flatten(0, 1))
    keys, value, hidden = keys.unflatten(0, (2, 24)), value.unflatten(0, (2, 24)), expected["hidden_states"]
    assert torch.equal(hidden, wave((2, 24, 4, 64), 0.017, 1))
    length = 12 if way is TritonFusion and KERNEL_DEVICE.type == "cpu" else 24
    expected = {name: expected[name][:, :length] for name in ("output", "gates")}
    return keys[:, :length], value[:, :length], hidden[:, :length], expected


@pytest.mark.parametrize("way", WAYS)
def test_golden_layer(way):
    keys, value, hidden, expected = golden_inputs(way)
    weights = golden_fusion()
    fused = fused_by(way, weights, keys, value, hidden, *no_history(weights, 2))
    torch.testing.assert_close(fused - hidden, expected["output"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "dtype"), [*((way, torch.bfloat16) for way in WAYS), *((way, torch.float16) for way in WAYS[::2])]
)
def test_golden_layer_of_half_the_bits(way, dtype):
    """Everything that is read is rounded, so that a few gates near 0 are not those of the golden layer."""
    keys, value, hidden, expected = golden_inputs(way)
    weights = golden_fusion().to(dtype)
    rounded = (tensor.to(dtype) for tensor in (keys, value, hidden))
    fused = fused_by(way, weights, *rounded, *no_history(weights, 2)).float()
    want = hidden + expected["output"]
    error = (fused - want).norm(dim=-1) / want.norm(dim=-1)
    assert (error <= TOLERANCES[dtype]).float().mean() > 0.95
    assert error.max() < 5 * TOLERANCES[dtype]


@pytest.mark.parametrize("way", WAYS)
def test_golden_gates(way):
    keys, value, hidden, expected = golden_inputs(way)
    gates = gate_of(golden_fusion().products(keys, hidden))
    torch.testing.assert_close(gates, expected["gates"], rtol=1e-5, atol=1e-5)
    alone = replace(golden_fusion(), conv_norm=None, conv_weight=None, conv_dilation=1)
    fused = fused_by(way, alone, keys, value, hidden)
    torch.testing.assert_close(fused - hidden, gates[..., None] * value[:, :, None], rtol=1e-5, atol=1e-5)


def drawn(copies, channels, dtype, *, kernel=None, dilation=None, seed=1):
    geometry = demo_geometry(
        hidden_size=channels, hc_mult=copies, row_values=2, vocab_per_order=(20, 20), conv_kernel=kernel,
        conv_dilation=dilation,
    )  # fmt: skip
    return FusionWeights.draw(geometry, ProjectionWeights.draw(geometry, dtype, seed), seed)


def inputs_for(weights, sequences, length, seed=0):
    """Keys, value, hidden state and history, of which some sequences have none; keys and value side by side."""
    generator = torch.Generator().manual_seed(seed)
    (copies, channels), dtype = weights.query_norm.shape, weights.query_norm.dtype
    kv = torch.randn(sequences, length, copies + 1, channels, generator=generator).to(dtype)
    hidden = torch.randn(sequences, length, copies, channels, generator=generator).to(dtype)
    values = torch.randn(sequences, weights.reach, channels, generator=generator).to(dtype)
    scales = torch.rand(sequences, weights.reach, copies, generator=generator)
    scales[::2] = 0
    history = () if weights.conv_weight is None else (values, scales)
    return kv[:, :, :-1], kv[:, :, -1], hidden, *history


def reference(weights, *inputs):
    return weights.to(torch.float32).fuse(*(tensor.float() for tensor in inputs))


@settings(max_examples=12, deadline=None)
@given(
    sequences=st.integers(1, 3),
    length=st.integers(1, 16),
    copies=st.integers(1, 5),
    channels=st.integers(2, 48),
    conv=st.sampled_from([(None, None), (4, 3), (2, 1), (3, 5)]),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 2**31),
)
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_shape_and_dtype(way, sequences, length, copies, channels, conv, dtype, seed):
    if way is NumbaFusion and dtype == torch.float16:
        dtype = torch.float32
    weights = drawn(copies, channels, dtype, kernel=conv[0], dilation=conv[1], seed=seed)
    inputs = inputs_for(weights, sequences, length, seed)
    fused, want = fused_by(way, weights, *inputs), reference(weights, *inputs)
    assert fused.dtype == dtype
    error = (fused.float() - want).norm(dim=-1) / want.norm(dim=-1)
    assert error.max() < 2 * TOLERANCES[dtype], "so few channels have no averaging of rounding errors"


@settings(max_examples=10, deadline=None)
@given(st.data())
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_sequence_in_pieces_with_history_equals_the_whole(way, data):
    """In pieces that are handed what came before as history, and in pieces that read it where the whole has it."""
    sequences, length = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 15))
    weights = drawn(2, 24, torch.float32, kernel=4, dilation=data.draw(st.integers(1, 4)), seed=2)
    keys, value, hidden, *history = inputs_for(weights, sequences, length, seed=data.draw(st.integers(0, 99)))
    whole = fused_by(way, weights, keys, value, hidden, *history)
    cut, reach = data.draw(st.integers(1, length - 1)), weights.reach
    rest = keys[:, cut:], value[:, cut:], hidden[:, cut:]
    gates = gate_of(weights.products(keys, hidden))
    scales = gates / (gates.square() * value.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    stream = torch.cat([history[0], value], dim=1), torch.cat([history[1], scales], dim=1)
    handed_on = (tensor[:, cut : cut + reach].contiguous() for tensor in stream)
    torch.testing.assert_close(fused_by(way, weights, *rest, *handed_on), whole[:, cut:], rtol=1e-4, atol=1e-5)
    lead = min(cut, reach)
    read = keys[:, cut - lead :], value[:, cut - lead :], hidden[:, cut - lead :]
    found = fused_by(way, weights, *read, *history, lead=lead)
    torch.testing.assert_close(found, whole[:, cut:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_product_of_zero_gates_by_half_and_what_is_no_number_shows(way):
    weights = drawn(2, 16, torch.float32)
    keys, value, hidden = inputs_for(weights, 1, 6)
    keys[0, 1] = 0
    keys[0, 2, 0, 3] = torch.nan
    hidden[0, 3, 1, 3] = torch.nan
    fused = fused_by(way, weights, keys, value, hidden)
    torch.testing.assert_close(fused[0, 1], hidden[0, 1] + value[0, 1] / 2)
    wrong = fused.isnan().all(dim=-1)
    assert wrong.nonzero().tolist() == [[0, 2, 0], [0, 3, 1]]


@pytest.mark.parametrize(("way", "length"), [(TritonFusion, 17), (NumbaFusion, 75)])
def test_blocks_of_many_tokens(way, length, monkeypatch):
    """More than a program or a block takes, in sequences that end within one."""
    monkeypatch.setattr("engram_exp.steps.fusion.triton.PROGRAMS_PER_PROCESSOR", 6)
    monkeypatch.setattr("engram_exp.steps.fusion.triton.MOST_TOKENS", 10)
    weights = drawn(2, 40, torch.bfloat16, kernel=4, dilation=3)
    inputs = inputs_for(weights, 3, length)
    torch.testing.assert_close(
        fused_by(way, weights, *inputs).float(), reference(weights, *inputs), rtol=2e-2, atol=2e-2
    )


def test_plain_pieces_of_a_few_tokens(monkeypatch):
    monkeypatch.setattr("engram_exp.steps.fusion.plain.SCRATCH_VALUES", 3 * 2 * 40 * 7)  # 7 tokens a piece
    weights = drawn(2, 40, torch.float32, kernel=4, dilation=3)
    inputs = inputs_for(weights, 3, 50)
    torch.testing.assert_close(fused_by(PlainFusion, weights, *inputs), reference(weights, *inputs))


@pytest.mark.parametrize("way", WAYS)
def test_keys_and_value_may_lie_apart(way):
    weights = drawn(2, 16, torch.float32)
    keys, value, hidden = inputs_for(weights, 1, 5)
    want = reference(weights, keys, value, hidden)
    torch.testing.assert_close(fused_by(way, weights, keys.contiguous(), value.contiguous(), hidden), want)


@pytest.mark.parametrize(
    ("device", "dtype", "way"),
    [("cpu", torch.bfloat16, NumbaFusion), ("cpu", torch.float32, NumbaFusion), ("cpu", torch.float16, PlainFusion),
     pytest.param("cuda", torch.bfloat16, TritonFusion, marks=pytest.mark.accelerator)],
)  # fmt: skip
@pytest.mark.parametrize("fusion", [GatedFusion, GatedConvFusion])
def test_the_fastest_way_is_taken(device, dtype, way, fusion):
    weights = drawn(2, 8, dtype).to(torch.device(device))
    assert type(fusion(weights, 4, Placement(torch.device(device)), 0).way) is way


@pytest.mark.parametrize("way", WAYS)
def test_what_is_returned_is_a_kept_buffer_and_nothing_else_is_written(way):
    weights = drawn(2, 16, torch.float32, kernel=4, dilation=3).to(KERNEL_DEVICE if way is TritonFusion else "cpu")
    inputs = [tensor.to(weights.query_norm.device) for tensor in inputs_for(weights, 2, 8)]
    keys, value, hidden = (tensor.flatten(0, 1) for tensor in inputs[:3])
    before = [tensor.clone() for tensor in (keys, value, hidden, *inputs[3:])]
    built = way(weights, 20, Placement(weights.query_norm.device), 0)
    first, second = (built(keys, value, hidden, *inputs[3:]) for _ in range(2))
    assert first.data_ptr() == second.data_ptr() == built.out.data_ptr()
    assert all(map(torch.equal, before, (keys, value, hidden, *inputs[3:])))
    assert built.out[16:].isnan().all(), "poisoned, and not written"


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("copies", "channels", "conv"), [(4, 5120, (None, None)), (4, 2560, (4, 3)), (4, 1024, (4, 3))]
)
@pytest.mark.parametrize(("sequences", "length"), [(1, 3000), (64, 1), (3, 513)])
def test_real_sizes_on_a_gpu(copies, channels, conv, sequences, length):
    weights = drawn(copies, channels, torch.bfloat16, kernel=conv[0], dilation=conv[1])
    inputs = inputs_for(weights, sequences, length)
    fused, want = fused_by(TritonFusion, weights, *inputs).float(), reference(weights, *inputs)
    assert ((fused - want).norm(dim=-1) / want.norm(dim=-1)).max() < TOLERANCES[torch.bfloat16]


def test_a_model_without_convolution_has_no_parameters_for_one():
    weights = drawn(2, 8, torch.float32)
    assert (weights.conv_norm, weights.conv_weight, weights.kernel, weights.reach) == (None, None, 1, 0)
    assert drawn(2, 8, torch.float32, kernel=4, dilation=3).reach == 9


def test_parameters_depend_on_the_seed_alone():
    first, again, other = (drawn(2, 8, torch.float32, kernel=4, dilation=3, seed=seed) for seed in (1, 1, 2))
    for name in ("key_norm", "query_norm", "conv_norm", "conv_weight"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
