"""Edges and defaults of several modules that their own tests pass by."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from conftest import CPU, KERNEL_DEVICE, TINY, demo_geometry
from hypothesis import given, settings
from test_hashing import hash_with, workloads
from test_limits import PEAKS
from test_measure import measured
from test_projection import normed, weights_for
from test_widening import WIDENINGS, equal, widen

from engram_exp import verify
from engram_exp.build import Builder
from engram_exp.compression import TokenCompression
from engram_exp.errors import ConfigError, DoesNotFitError, MismatchError
from engram_exp.flow import Flow
from engram_exp.hashing.numba import NumbaHasher
from engram_exp.hashing.numpy import NumpyHasher
from engram_exp.hashing.plan import HashPlan
from engram_exp.hashing.triton import TritonHasher
from engram_exp.job import fingerprint
from engram_exp.limits import Limits
from engram_exp.measure.clock import Clock, Sample
from engram_exp.measure.loop import Case, measure
from engram_exp.measure.statistics import summarise
from engram_exp.memory import Footprint, check_fits, footprint, forget_peaks, peak_bytes
from engram_exp.plan import PlannedStage
from engram_exp.projection.fused import FusedProjection
from engram_exp.projection.rms_norm import KeyNorm
from engram_exp.projection.rms_norm_numba import NumbaKeyNorm
from engram_exp.projection.rms_norm_triton import TritonKeyNorm
from engram_exp.projection.weights import ProjectionWeights
from engram_exp.schedule import cut
from engram_exp.tables.rows import RowFormat
from engram_exp.upload.pinned import PinnedUpload
from engram_exp.widening import build_widening
from engram_exp.widening.numba import NumbaWidening


@settings(max_examples=60, deadline=None)
@given(workloads())
@pytest.mark.parametrize("backend", [NumbaHasher, TritonHasher])
def test_backends_agree(backend, workload):
    plan, ids, history = workload
    assert torch.equal(hash_with(backend, plan, ids, history), hash_with(NumpyHasher, plan, ids, history))


@pytest.mark.parametrize("pad_id", [10, 99])
def test_a_pad_id_outside_the_vocabulary_is_refused(pad_id):
    with pytest.raises(ConfigError, match=rf"^model\.pad_id={pad_id}: the tokenizer has 10 ids"):
        HashPlan.build(demo_geometry(pad_id=pad_id), TokenCompression(np.arange(10, dtype=np.int32)))


def test_the_pad_id_is_compressed_too():
    compression = TokenCompression(np.array([1, 1, 0], dtype=np.int32))
    assert HashPlan.build(demo_geometry(pad_id=2), compression).pad == 0


@pytest.mark.parametrize("widening", WIDENINGS)
def test_rows_wider_than_a_block(widening):
    row_format = RowFormat(1100, torch.bfloat16, values_per_scale=32)
    stored = row_format.contents(torch.arange(6), seed=1)
    assert equal(widen(widening, row_format, stored, 3), row_format.widen(stored))


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


def test_a_chunk_takes_as_many_whole_sequences_as_it_can():
    assert [piece.tokens for piece in cut(5, 4, 9)] == [8, 8, 4]
    assert [piece.tokens for piece in cut(2, 10, 4)] == [4, 4, 2] * 2


def test_a_wrong_widening_is_a_mismatch(run_inline, monkeypatch):
    def doubled(self, rows, original=NumbaWidening.__call__):
        return original(self, rows).mul_(2)

    monkeypatch.setattr(NumbaWidening, "__call__", doubled)
    (row,) = run_inline("dtype=fp8", "strategy=kv_on_cpu", "cases=[widening]")
    assert row["status"] == "mismatch", row
    assert row["error"].startswith("widening: ")


@pytest.mark.parametrize("case", ["hashing", "lookup", "full"])
def test_every_call_of_a_case_reads_another_batch(configure, case):
    builder = Builder(configure(*TINY, "strategy=kv_on_cpu", "schedule=serial"))
    names = [stage.name for stage in builder.active]
    with torch.inference_mode():
        flow = Flow(builder, names, builder.active, Clock(CPU.device), whole=True)
        flow.build_and_verify()
        made = [call()[0].clone() for call in flow.calls(case)]
    assert len(made) == 4
    assert not any(torch.equal(made[i], made[j]) for i in range(4) for j in range(i))


def test_tokens_on_both_sides_of_every_edge_are_compared():
    found = verify.compared_tokens(100_000, 4096, 12_345).tolist()
    assert found == sorted(set(found))
    for edge in (0, 4096, 12_345, 100_000):
        assert set(range(max(0, edge - 32), min(100_000, edge + 32))) <= set(found)
    assert len(found) < 1000


def test_the_edge_of_the_first_chunk_is_compared(configure):
    builder = Builder(configure(*TINY, "batch_size=4", "seq_len=5000", "schedule.chunk_tokens=1111"))
    flow = Flow(builder, [], builder.active, Clock(CPU.device), whole=True)
    assert set(range(1111 - 32, 1111 + 32)) <= set(flow._compared_tokens().tolist())


def test_what_is_not_a_number_is_not_close():
    with pytest.raises(MismatchError, match=r"1 of 2 compared vectors differ .*, by up to inf"):
        verify.require_close("keys", torch.tensor([[1.0, torch.nan], [1.0, 1.0]]), torch.ones(2, 2), 0.1)


def test_equal_values_of_another_dtype_are_a_mismatch():
    with pytest.raises(MismatchError, match=r"^hashing: torch.int64 \[3\] instead of torch.int32 \[3\]"):
        verify.require_equal("hashing", torch.arange(3), torch.arange(3, dtype=torch.int32))


def test_fp8_rows_move_as_they_are_stored():
    geometry = demo_geometry(values_per_scale=32)
    assert geometry.row_bytes == 66
    assert geometry.bytes_moved("lookup", 10, 2) == 10 * 16 * (4 + 2 * 66)
    assert geometry.bytes_moved("up_embed", 10, 2) == 10 * 16 * 66
    assert geometry.bytes_moved("widening", 10, 2) == 10 * 16 * (66 + 64 * 2)
    assert demo_geometry(row_values=40, values_per_scale=32).row_bytes == 42, "a scale of fewer values is one, too"


def test_row_ids_widen_as_soon_as_32_bits_are_too_few():
    for rows, size in ((2**31, 4), (2**31 + 1, 8)):
        geometry = demo_geometry(layers=(1,), prime_source=lambda *_, rows=rows: [[rows - 15, *[1] * 15]])
        assert (geometry.rows, geometry.row_id_bytes) == (rows, size)


def test_the_rates_in_words():
    assert Limits(PEAKS).summary("bfloat16") == (
        "host memory 100 GB/s, host bfloat16 5 TFLOP/s, device memory 4000 GB/s, device bfloat16 700 TFLOP/s, "
        "link 53.7 GB/s"
    )


class SetClock:
    """Calls take what it is told they take, the last for ever."""

    def __init__(self, *times_ms):
        self.times_ms = list(times_ms)

    def time(self, do, *, uses_device):
        do()
        return Sample(self.times_ms.pop(0) if len(self.times_ms) > 1 else self.times_ms[0], None, None)


def calls_and_timing(clock, **options):
    calls = []
    options = {"iterations": 1, "budget_s": 10, "seed": 0, "progress": lambda *_: None, **options}
    timing = measure([Case("a", [lambda: calls.append(1)], False)], clock, **options)["a"]
    return len(calls), timing


@pytest.mark.parametrize(("latest", "warming_up"), [(10.0, 6), (9.6, 6), (9.4, 7), (12.0, 6)])
def test_times_are_steady_once_three_calls_gain_less_than_a_twentieth(latest, warming_up):
    calls, timing = calls_and_timing(SetClock(10, 10, 10, latest))
    assert timing.steady
    assert calls == warming_up + 1


def test_a_budget_is_in_seconds():
    _, timing = calls_and_timing(SetClock(1000.0), iterations=10, budget_s=3)
    assert (len(timing.samples), timing.stop_reason, timing.spent_s) == (3, "budget", 3.0)


def test_warming_up_takes_a_share_of_the_budget():
    import time

    timings = measured([Case("slow", [lambda: time.sleep(0.03)], False)], iterations=1, budget_s=1)
    assert not timings["slow"].steady, "6 calls take more than 5 % of a second"


def test_percentiles_are_those_they_are_called():
    columns = summarise(range(1001))
    assert (columns["wall_ms_p95"], columns["wall_ms_p99"]) == (950, 990)


def test_made_up_inputs_count():
    geometry = demo_geometry(values_per_scale=32)
    shape = {"shape": (1, 100), "batches": 1, "kv_buffers": 1}
    widening = PlannedStage("widening", "device")
    real, made_up = (footprint(geometry, [widening], names, **shape) for names in ([], ["widening"]))
    assert made_up.device_bytes - real.device_bytes == 100 * 16 * 66


def test_a_remedy_is_a_share_of_the_real_table():
    for device, where in (("cuda", "host"), ("cpu", "device")):
        sides = (11 * 10**9, 0) if where == "host" else (0, 11 * 10**9)
        with pytest.raises(DoesNotFitError, match=r"model\.table_scale=0\.13 would fit"):
            check_fits(Footprint(*sides, 10**10, where), 4 * 10**9, 8 * 10**9, torch.device(device), table_scale=0.5)


def test_the_peak_of_the_host_is_in_bytes_and_can_be_forgotten():
    kept = psutil.Process().memory_info().rss
    torch.ones(2**28, dtype=torch.uint8)
    before = peak_bytes(CPU.device)["peak_host_bytes"]
    assert before >= kept + 2**27
    forget_peaks(CPU.device)
    assert peak_bytes(CPU.device)["peak_host_bytes"] < before - 2**27


def uploaded(*tensors):
    """What comes out, and how many copies that takes; a source need not be pinned for that."""
    upload = PinnedUpload(CPU)
    route = upload._route(tensors)
    for source, target in zip(route.sources, route.targets, strict=True):
        target.copy_(source)
    return route.results, len(route.sources)


def test_neighbours_cross_in_one_transfer_and_others_each_in_their_own():
    kv = torch.arange(60.0).view(4, 3, 5)
    behind = torch.arange(100)[30:]
    for tensors, copies in (
        ((kv[:, :-1], kv[:, -1]), 1),
        ((kv[:, -1], kv[:, :-1]), 1),
        ((behind[:12].view(3, 4), behind[12:20]), 1),
        ((behind[:12], behind[13:20]), 2),
        ((torch.arange(9)[:4], torch.arange(10, 19)[4:8]), 2),
        ((torch.arange(6), torch.arange(6.0)), 2),
    ):
        results, taken = uploaded(*tensors)
        assert taken == copies
        assert all(torch.equal(result, tensor) for result, tensor in zip(results, tensors, strict=True))


def test_another_repetition_or_choice_is_another_run(configure):
    config = configure()
    marks = [fingerprint(config, {"strategy": strategy}, repeat) for strategy in ("uva", "mine") for repeat in (0, 1)]
    assert len(set(marks)) == 4
