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
from engram_exp.layer.deepseek_hash import DeepSeekHash
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.layer.qwen_hash import QwenHash
from engram_exp.machine.placement import Placement
from engram_exp.steps.hashing.numba import NumbaHasher
from engram_exp.steps.hashing.numpy import NumpyHasher
from engram_exp.steps.hashing.triton import TritonHasher

BACKENDS = [NumpyHasher, NumbaHasher, TritonHasher]
SEED_AND_PAD = {"hash_seed": 0, "pad_id": 2}  # of the golden vectors of DeepSeek's hash


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
    plan = DeepSeekHash(compression, **SEED_AND_PAD)(geometry_of(configure(f"model={model}", f"layer={layer}")))
    assert np.array_equal(plan.multipliers, expected[f"{prefix}_layer{layer}_multipliers"])
    assert np.array_equal(plan.moduli, expected[f"{prefix}_layer{layer}_primes"])
    row_ids = hash_with(backend, plan, expected["token_ids"])
    assert row_ids.dtype == torch.int32
    assert np.array_equal(row_ids.numpy(), expected[f"{prefix}_layer{layer}_rows"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_hash_of_a_small_layer(compression, backend):
    expected = golden("forward")
    plan = DeepSeekHash(compression, **SEED_AND_PAD)(demo_geometry(vocab_per_order=(2000, 3000)))
    assert np.array_equal(plan.moduli, expected["primes"])
    assert np.array_equal(hash_with(backend, plan, expected["token_ids"]).numpy(), expected["rows"])


@pytest.fixture(scope="module")
def qwen_plan():
    """Of the model's own size, with the constants of the golden vectors."""
    expected = golden("qwen_hash")
    geometry = demo_geometry(layers=(1,), vocab_per_order=(20_000_000, 20_000_000))
    return QwenHash(*(int(expected[name]) for name in ("vocab_size", "eos_id", "seed")))(geometry)


def test_golden_constants_of_qwens_hash(qwen_plan):
    expected = golden("qwen_hash")
    assert np.array_equal(qwen_plan.multipliers, expected["multipliers"])
    assert np.array_equal(qwen_plan.moduli, expected["primes"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_hash_of_qwen(qwen_plan, backend):
    """With history, and end-of-text ids in both: whole, and every sequence cut in two at every place."""
    expected = golden("qwen_hash")
    ids, history, rows = expected["token_ids"], expected["history"], expected["rows"]
    assert (ids == expected["eos_id"]).any()
    row_ids = hash_with(backend, qwen_plan, ids, history)
    assert row_ids.dtype == torch.int32
    assert np.array_equal(row_ids.numpy(), rows)
    afresh = np.where(history == expected["eos_id"], -1, history)
    assert np.array_equal(hash_with(backend, qwen_plan, ids, afresh).numpy(), rows), "a sequence starts behind an end"
    stream = np.concatenate([history, ids], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(stream, 3, axis=1).reshape(-1, 3)
    each = hash_with(backend, qwen_plan, windows[:, 2:].copy(), windows[:, :2].copy())
    assert np.array_equal(each.numpy().reshape(rows.shape), rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("end_at", range(6))
def test_nothing_crosses_an_end_of_text_id(backend, end_at):
    """Wherever it stands, what is older does not matter; what stands before the sequence counts as one."""
    geometry = demo_geometry(orders=(1, 2, 3, 4, 5), vocab_per_order=(1000,) * 5)
    plan = QwenHash(vocab_size=100, eos_id=7, hash_seed=3)(geometry)
    stream = np.array([[11, 12, 13, 14, 15, 16]])
    stream[0, end_at] = 7
    other = stream.copy()
    other[0, :end_at] = 50
    cut = np.where(np.arange(6) < end_at, -1, stream)
    rows = [hash_with(backend, plan, each[:, 4:].copy(), each[:, :4].copy()) for each in (stream, other, cut)]
    is_behind = torch.tensor([end_at < 4, end_at < 5])
    assert torch.equal(rows[0][0, is_behind], rows[1][0, is_behind])
    assert torch.equal(rows[0][0, is_behind], rows[2][0, is_behind])
    if end_at == 5:  # the token at hand ends a text, and belongs to it
        assert not torch.equal(rows[0][0, 1], rows[1][0, 1])


@st.composite
def workloads(draw):
    """Any geometry, hash, ids and history. Raw ids may lie outside of the vocabulary, where products wrap around."""
    orders = tuple(sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=4))))
    vocab = draw(st.integers(2, 60))
    geometry = demo_geometry(
        orders=orders,
        heads=draw(st.integers(1, 5)),
        vocab_per_order=tuple(draw(st.integers(1, 10**6)) for _ in orders),
    )
    seed, special = draw(st.integers(0, 2**64)), draw(st.integers(0, vocab - 1))
    compressed, most = draw(arrays(np.int32, vocab, elements=st.integers(0, vocab - 1))), vocab - 1
    made = DeepSeekHash(TokenCompression(compressed), seed, special)
    if draw(st.booleans()):
        made, most = QwenHash(vocab, special, seed), draw(st.sampled_from([vocab - 1, 2**62]))
    batch_size, seq_len, history_len = draw(st.integers(1, 4)), draw(st.integers(1, 20)), orders[-1] - 1
    some = st.integers(0, most) | st.just(special)
    ids = draw(arrays(np.int64, (batch_size, seq_len), elements=some))
    history = draw(arrays(np.int64, (batch_size, history_len), elements=some))
    for row, starts_at in enumerate(draw(arrays(np.int64, batch_size, elements=st.integers(0, history_len)))):
        history[row, :starts_at] = -1
    return made(geometry), ids, history


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
    """The reciprocal must not be off at either side of a multiple, nor at the ends of the range. Of a negative number,
    which a product that wrapped around is, the remainder is that to the next multiple below."""
    modulus = data.draw(st.one_of(st.integers(2, 2**13), st.integers(2**12, 2**40)))
    multiple = data.draw(st.integers(1, (2**63 - 1) // modulus)) * modulus
    values = np.array([0, modulus - 1, multiple - 1, multiple, min(multiple + 1, 2**63 - 1), 2**63 - 1], dtype=np.int64)
    for value in [*values, *~values]:  # one token of id 1, so that the multiplier itself is taken modulo the prime
        plan = HashPlan(
            compressed_ids=None, pad=0, multipliers=np.array([value]), moduli=np.array([modulus]),
            offsets=np.array([0]), first_column=np.array([0, 1]), row_id_dtype=torch.int64,
        )  # fmt: skip
        for backend in (NumbaHasher, NumpyHasher):
            assert hash_with(backend, plan, np.array([[1]])).item() == int(value) % modulus


def test_products_never_overflow(compression):
    plan = DeepSeekHash(compression, **SEED_AND_PAD)(demo_geometry())
    assert int(plan.multipliers.max()) * (compression.compressed_vocab_size - 1) < 2**63
    assert (plan.multipliers % 2 == 1).all()


def test_row_ids_widen_where_the_table_needs_it():
    compression = TokenCompression(np.arange(10, dtype=np.int32))
    plan = DeepSeekHash(compression, **SEED_AND_PAD)(demo_geometry(vocab_per_order=(2**28, 2**28)))
    assert plan.row_id_dtype == torch.int64
    ids = np.arange(10)[None]
    assert torch.equal(hash_with(NumbaHasher, plan, ids), hash_with(NumpyHasher, plan, ids))


@pytest.mark.parametrize("pad_id", [10, 99])
def test_a_pad_id_outside_the_vocabulary_is_refused(pad_id):
    with pytest.raises(ConfigError, match=rf"^model\.pad_id={pad_id}: the tokenizer has 10 ids"):
        DeepSeekHash(TokenCompression(np.arange(10, dtype=np.int32)), hash_seed=0, pad_id=pad_id)


def test_the_pad_id_is_compressed_too():
    compression = TokenCompression(np.array([1, 1, 0], dtype=np.int32))
    assert DeepSeekHash(compression, **SEED_AND_PAD)(demo_geometry()).pad == 0


@pytest.mark.parametrize("backend", [NumpyHasher, NumbaHasher])
def test_a_hasher_of_the_cpu_is_refused_on_a_device(tiny_plan, backend):
    with pytest.raises(ConfigError, match=r"^hashing: runs on cpu.*places it on meta"):
        backend(tiny_plan, 1, Placement(torch.device("meta")))
