from dataclasses import replace

import pytest
import torch
from common import demo_geometry, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU, DEVICES, KERNEL_DEVICE
from waves import golden_weights

from engram_exp.layer.row_format import RowFormat
from engram_exp.layer.weights import ProjectionWeights
from engram_exp.machine.placement import Placement
from engram_exp.run.verify import require_like
from engram_exp.steps.projection.fused import FusedProjection
from engram_exp.steps.projection.linear import LinearProjection
from engram_exp.steps.projection.rms_norm import KeyNorm
from engram_exp.steps.projection.rms_norm_numba import NumbaKeyNorm
from engram_exp.steps.projection.rms_norm_triton import TritonKeyNorm
from engram_exp.steps.widening import build_widening
from engram_exp.steps.widening.numba import NumbaWidening

PROJECTIONS = [LinearProjection, FusedProjection]
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_golden_keys_and_value(projection, device):
    expected = golden("forward")
    embeddings = torch.from_numpy(expected["embeddings"].reshape(48, 128)).to(device)
    keys, value = (out.cpu() for out in projection(golden_weights(), 48, Placement(torch.device(device)))(embeddings))
    torch.testing.assert_close(keys, torch.from_numpy(expected["keys"].reshape(48, 4, 64)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value, torch.from_numpy(expected["value"].reshape(48, 64)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 50),
    hidden=st.integers(2, 48),
    copies=st.integers(1, 5),
    bias=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_keys_and_value_are_within_tolerance_of_float32(projection, tokens, hidden, copies, bias, dtype, seed):
    geometry = demo_geometry(hidden_size=hidden, hc_mult=copies, bias=bias, row_values=4, vocab_per_order=(20, 20))
    weights = ProjectionWeights.draw(geometry, dtype, seed)
    embeddings = torch.randn(tokens, geometry.embedding_width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    keys, value = projection(weights, tokens, CPU)(embeddings)
    assert keys.shape == (tokens, copies, hidden)
    assert keys.dtype == value.dtype == dtype
    # A vector of so few channels has no averaging of rounding errors: twice the tolerance of a run.
    want = weights.to(torch.float32).project(embeddings.float())
    require_like("", "kv", (keys, value), want, 2 * TOLERANCES[dtype])


def weights_for(copies: int, hidden: int, dtype: torch.dtype) -> ProjectionWeights:
    geometry = demo_geometry(hidden_size=hidden, hc_mult=copies, row_values=2, vocab_per_order=(20, 20))
    return ProjectionWeights.draw(geometry, dtype, seed=1)


def normed(kv: torch.Tensor, weights: ProjectionWeights, *, with_bias: bool) -> torch.Tensor:
    vectors = kv.float()
    if with_bias:
        vectors = vectors + weights.bias.float().view(-1, weights.hidden_size)
    keys = torch.nn.functional.rms_norm(vectors[:, :-1], (weights.hidden_size,), eps=weights.norm_eps)
    return torch.cat([keys * weights.norm.float(), vectors[:, -1:]], dim=1)


def test_norms_are_accumulated_in_float32_over_every_chunk(monkeypatch):
    monkeypatch.setattr("engram_exp.steps.projection.rms_norm.SCRATCH_VALUES", 7 * 3 * 64)  # 7 tokens a chunk
    weights = weights_for(3, 64, torch.bfloat16)
    kv = torch.randn(40, 4, 64).bfloat16()
    want = normed(kv, weights, with_bias=False).bfloat16()
    KeyNorm(weights)(kv)
    assert torch.equal(kv[:, -1], want[:, -1])
    torch.testing.assert_close(kv, want, rtol=2**-7, atol=0)  # a sum in another order may round to the neighbour
    assert (kv == want).float().mean() > 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "copies", "hidden"), [(1, 1, 16), (37, 3, 40), (9, 4, 1024)])
def test_compiled_norm_equals_float32_rounded_once(tokens, copies, hidden):
    weights = weights_for(copies, hidden, torch.bfloat16)
    kv = torch.randn(tokens, copies + 1, hidden).bfloat16()
    want = normed(kv, weights, with_bias=True).bfloat16()
    NumbaKeyNorm(weights)(kv)
    assert torch.equal(kv[:, -1], want[:, -1])
    torch.testing.assert_close(kv, want, rtol=2**-7, atol=0)  # a sum in another order may round to the neighbour
    assert (kv == want).float().mean() > 0.98


def test_compiled_norm_keeps_what_is_not_finite():
    weights = weights_for(2, 16, torch.bfloat16)
    kv = torch.randn(3, 3, 16).bfloat16()
    kv[1, 0, 5] = torch.nan
    NumbaKeyNorm(weights)(kv)
    assert kv[1, 0].isnan().all()
    assert kv[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("tokens", "copies", "hidden"), [(1, 1, 16), (5, 3, 40), (3, 4, 64)])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_triton_norm(tokens, copies, hidden, dtype):
    weights = weights_for(copies, hidden, dtype).to(KERNEL_DEVICE)
    kv = torch.randn(tokens, copies + 1, hidden).to(dtype).to(KERNEL_DEVICE)
    want = normed(kv, weights, with_bias=False)
    TritonKeyNorm(weights)(kv)
    torch.testing.assert_close(kv.float(), want, rtol=TOLERANCES[dtype], atol=1e-6)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_raw_keys_are_left_for_a_gate(projection, dtype):
    weights = replace(weights_for(3, 16, dtype), norms_keys=False)
    embeddings = torch.randn(7, weights.weight.shape[1]).to(dtype)
    keys, value = projection(weights, 7, CPU)(embeddings)
    plain = torch.nn.functional.linear(embeddings.float(), weights.weight.float(), weights.bias.float()).view(7, 4, 16)
    require_like("", "kv", (keys, value), (plain[:, :-1], plain[:, -1]), 2 * TOLERANCES[dtype])
    want = weights.to(torch.float32).project(embeddings.float())
    torch.testing.assert_close(want[0], plain[:, :-1])


def test_fused_keys_and_value_share_one_buffer():
    weights = ProjectionWeights.draw(demo_geometry(hidden_size=8), torch.float32, 0)
    keys, value = FusedProjection(weights, 6, CPU)(torch.randn(6, 1024))
    assert keys.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    assert keys.untyped_storage().nbytes() == keys.nbytes + value.nbytes


def test_the_fastest_way_is_taken():
    fp8 = RowFormat(64, torch.bfloat16, values_per_scale=32)
    assert isinstance(build_widening(fp8, 4, 3, CPU), NumbaWidening)
    for dtype, norm in ((torch.bfloat16, NumbaKeyNorm), (torch.float32, KeyNorm)):
        assert type(FusedProjection(weights_for(1, 8, dtype), 1, CPU).norm) is norm


@pytest.mark.parametrize("norm", [KeyNorm, NumbaKeyNorm, TritonKeyNorm])
def test_epsilon_counts(norm):
    device = KERNEL_DEVICE if norm is TritonKeyNorm else CPU.device
    weights = replace(weights_for(2, 16, torch.bfloat16), norm_eps=0.5)
    kv = torch.randn(5, 3, 16).bfloat16()
    want = normed(kv, weights, with_bias=norm.adds_bias).bfloat16()
    finished = kv.to(device)
    norm(weights.to(device))(finished)
    torch.testing.assert_close(finished.cpu(), want, rtol=2**-7, atol=0)


def test_parameters_depend_on_the_seed_alone():
    first, again, other = (ProjectionWeights.draw(demo_geometry(), torch.float32, seed) for seed in (1, 1, 2))
    for name in ("weight", "bias", "norm"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
