"""Every backend equals the golden vectors and the reference, to the last bit."""

import numpy as np
import pytest
import torch
from common import demo_geometry, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from places import CPU, KERNEL_DEVICE

from engram_exp.config.derived import geometry_of
from engram_exp.errors import ConfigError
from engram_exp.layer.compression import TokenCompression
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.machine.placement import Placement
from engram_exp.steps.hashing.numba import NumbaHasher
from engram_exp.steps.hashing.numpy import NumpyHasher
from engram_exp.steps.hashing.triton import TritonHasher

BACKENDS = [NumpyHasher, NumbaHasher, TritonHasher]


def hash_with(backend, plan, ids, history=None):
    ids = torch.as_tensor(ids)
    if history is None:
        history = torch.full((len(ids), len(plan.multipliers) - 1), -1)
    placement = Placement(KERNEL_DEVICE) if backend is TritonHasher else CPU
    hasher = backend(plan, ids.numel(), placement)
    return hasher(ids.to(placement.device), torch.as_tensor(history).to(placement.device)).cpu()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("model", "prefix", "layer"),
    [("demo", "demo", 1), ("demo", "demo", 15), ("deepseek_v41_flash", "v41", 1), ("deepseek_v41_flash", "v41", 14)],
)
def test_golden_hash(configure, compression, backend, model, prefix, layer):
    expected = golden("hash")
    plan = HashPlan.build(geometry_of(configure(f"model={model}", f"layer={layer}")), compression)
    assert np.array_equal(plan.multipliers, expected[f"{prefix}_layer{layer}_multipliers"])
    assert np.array_equal(plan.moduli, expected[f"{prefix}_layer{layer}_primes"])
    row_ids = hash_with(backend, plan, expected["token_ids"])
    assert row_ids.dtype == torch.int32
    assert np.array_equal(row_ids.numpy(), expected[f"{prefix}_layer{layer}_rows"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_hash_of_a_small_layer(compression, backend):
    expected = golden("forward")
    plan = HashPlan.build(demo_geometry(vocab_per_order=(2000, 3000)), compression)
    assert np.array_equal(plan.moduli, expected["primes"])
    assert np.array_equal(hash_with(backend, plan, expected["token_ids"]).numpy(), expected["rows"])


@st.composite
def workloads(draw):
    """Any geometry, compression, ids and history."""
    orders = tuple(sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=4))))
    vocab = draw(st.integers(2, 60))
    geometry = demo_geometry(
        orders=orders,
        heads=draw(st.integers(1, 5)),
        vocab_per_order=tuple(draw(st.integers(1, 10**6)) for _ in orders),
        hash_seed=draw(st.integers(0, 2**32)),
        pad_id=draw(st.integers(0, vocab - 1)),
    )
    compressed = draw(arrays(np.int32, vocab, elements=st.integers(0, vocab - 1)))
    batch_size, seq_len, history_len = draw(st.integers(1, 4)), draw(st.integers(1, 20)), orders[-1] - 1
    ids = draw(arrays(np.int64, (batch_size, seq_len), elements=st.integers(0, vocab - 1)))
    history = draw(arrays(np.int64, (batch_size, history_len), elements=st.integers(0, vocab - 1)))
    for row, starts_at in enumerate(draw(arrays(np.int64, batch_size, elements=st.integers(0, history_len)))):
        history[row, :starts_at] = -1
    return HashPlan.build(geometry, TokenCompression(compressed)), ids, history


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(workloads())
@pytest.mark.parametrize("backend", [NumbaHasher, TritonHasher])
def test_backends_agree(backend, workload):
    plan, ids, history = workload
    expected = hash_with(NumpyHasher, plan, ids, history)
    assert torch.equal(hash_with(backend, plan, ids, history), expected)
    first, last = torch.from_numpy(plan.offsets), torch.from_numpy(plan.offsets + plan.moduli)
    assert ((expected >= first) & (expected < last)).all()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(workloads(), st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_in_pieces_with_history_equals_the_whole(backend, workload, data):
    plan, ids, history = workload
    whole = hash_with(backend, plan, ids, history)
    cut = data.draw(st.integers(0, ids.shape[1] - 1))
    history_len = history.shape[1]
    stream = np.concatenate([history, ids], axis=1)
    piece = hash_with(backend, plan, ids[:, cut:].copy(), stream[:, cut : cut + history_len].copy())
    assert torch.equal(piece, whole[:, cut:])


@settings(max_examples=200, deadline=None)
@given(st.data())
@pytest.mark.slow
def test_remainders_are_exact_for_any_modulus(data):
    """The reciprocal must not be off at either side of a multiple, nor at the ends of the range."""
    modulus = data.draw(st.one_of(st.integers(2, 2**13), st.integers(2**12, 2**40)))
    multiple = data.draw(st.integers(1, (2**63 - 1) // modulus)) * modulus
    values = np.array([0, modulus - 1, multiple - 1, multiple, min(multiple + 1, 2**63 - 1), 2**63 - 1], dtype=np.int64)
    compressed = np.arange(2, dtype=np.int32)
    for value in values:  # one token whose compressed id is 1, so that the multiplier itself is taken modulo the prime
        plan = HashPlan(
            compressed_ids=compressed, pad=0, multipliers=np.array([value]), moduli=np.array([modulus]),
            offsets=np.array([0]), first_column=np.array([0, 1]), row_id_dtype=torch.int64,
        )  # fmt: skip
        assert hash_with(NumbaHasher, plan, np.array([[1]])).item() == int(value) % modulus


def test_products_never_overflow(compression):
    plan = HashPlan.build(demo_geometry(), compression)
    assert int(plan.multipliers.max()) * (compression.compressed_vocab_size - 1) < 2**63
    assert (plan.multipliers % 2 == 1).all()


def test_row_ids_widen_where_the_table_needs_it():
    compression = TokenCompression(np.arange(10, dtype=np.int32))
    plan = HashPlan.build(demo_geometry(vocab_per_order=(2**28, 2**28)), compression)
    assert plan.row_id_dtype == torch.int64
    ids = np.arange(10)[None]
    assert torch.equal(hash_with(NumbaHasher, plan, ids), hash_with(NumpyHasher, plan, ids))


@pytest.mark.parametrize("pad_id", [10, 99])
def test_a_pad_id_outside_the_vocabulary_is_refused(pad_id):
    with pytest.raises(ConfigError, match=rf"^model\.pad_id={pad_id}: the tokenizer has 10 ids"):
        HashPlan.build(demo_geometry(pad_id=pad_id), TokenCompression(np.arange(10, dtype=np.int32)))


def test_the_pad_id_is_compressed_too():
    compression = TokenCompression(np.array([1, 1, 0], dtype=np.int32))
    assert HashPlan.build(demo_geometry(pad_id=2), compression).pad == 0


@pytest.mark.parametrize("backend", [NumpyHasher, NumbaHasher])
def test_a_hasher_of_the_cpu_is_refused_on_a_device(tiny_plan, backend):
    with pytest.raises(ConfigError, match=r"^hashing=.*runs on cpu.*places it on meta"):
        backend(tiny_plan, 1, Placement(torch.device("meta")))
