"""Rows that a kernel reads through the link: the curves that are measured, the bound and the choices that follow."""

import json
from types import SimpleNamespace

import pytest
import torch
from common import H200
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.measure import rig
from engram_exp.measure.clock import Sample
from engram_exp.measure.kept import require_rates
from engram_exp.measure.limits import Limits
from engram_exp.measure.rates import link_rows
from engram_exp.measure.read_times import MeasuredReadTimes, as_key, as_launch
from engram_exp.measure.rig import Rig
from engram_exp.steps.lookup.order import Launch, launches, reading
from engram_exp.vocabulary import DEVICE, HOST

GIB, CPU = 2**30, torch.device("cpu")
PER_ROW_NS = {1: 5, 4: 6, 16: 8, 32: 15}  # sorted rows of up to 264 bytes, in so many GiB; larger ones twice as much
NUMBERS = (1000, 10_000, 100_000)


def times(ns):
    """A latency of 10 us, and so much for each row."""
    return {str(number): 10 + number * ns / 1e3 for number in NUMBERS}


BEST = {
    str(spread * GIB): {"64": times(ns), "264": times(ns), "1024": times(2 * ns)} for spread, ns in PER_ROW_NS.items()
}
LOAD = SimpleNamespace(dtype="bfloat16", row_bytes=264, spread_bytes=GIB, table_bytes=32 * GIB, row_ids=10_000)


def limit_us(rows, curve=BEST, **changes):
    load = SimpleNamespace(**{**vars(LOAD), **changes})
    found = Limits({"link_rows_us": curve, "device_gb_per_s": {"1": 1.0}}).of({"link row reads": rows}, load)
    assert found is None or found.by == "link rows"
    return found and found.ms * 1e3


@pytest.mark.parametrize(
    ("changes", "us"),
    [
        ({}, 10 + 150),
        ({"table_bytes": 100 * GIB}, 10 + 150),  # it falls further: a bound still
        ({"table_bytes": 17 * GIB}, 10 + 80),  # as fast as the next smaller one may be
        ({"table_bytes": GIB}, 10 + 50),
        ({"row_bytes": 160}, 10 + 150),
        ({"row_bytes": 1000}, 10 + 150),
        ({"row_bytes": 1024}, 10 + 300),
        ({"row_ids": 55_000}, 10 + 825),  # between two that were measured
        ({"row_ids": 500}, (10 + 15) / 2),  # in proportion to the fewest
        ({"row_ids": 10**6}, 10 + 1500),  # more may be denser: no longer than the most that were measured
        ({"table_bytes": GIB - 1}, None),
        ({"row_bytes": 63}, None),
        ({"curve": {}}, None),
    ],
)
def test_rows_are_bound_by_the_best_time_that_was_measured_for_them(changes, us):
    asked = changes.get("row_ids", LOAD.row_ids)
    assert limit_us(asked, **changes) == (us and pytest.approx(us))


def test_rows_that_a_cache_keeps_are_not_charged():
    assert limit_us(5_000) == pytest.approx(limit_us(10_000) / 2)
    assert limit_us(0) is None


SPANS = st.floats(0.1, 1e4)
CURVES = st.dictionaries(
    st.sampled_from([str(2**power) for power in range(20, 36)]),
    st.dictionaries(
        st.sampled_from(["64", "128", "264", "512"]),
        st.dictionaries(st.sampled_from(["1000", "5000", "20000"]), SPANS, min_size=1),
        min_size=1,
    ),
    min_size=1,
)


@given(CURVES, st.data())
def test_no_time_that_was_measured_beats_the_bound(curve, data):
    spread = data.draw(st.sampled_from(sorted(curve)))
    row_bytes = data.draw(st.sampled_from(sorted(curve[spread])))
    count = data.draw(st.sampled_from(sorted(curve[spread][row_bytes])))
    asked = {"table_bytes": int(spread), "row_bytes": int(row_bytes), "row_ids": int(count)}
    assert limit_us(int(count), curve, **asked) <= curve[spread][row_bytes][count] * (1 + 1e-9)


@given(st.integers(1, 2**21), st.integers(1, 2**21), st.integers(30, 40), st.integers(30, 40))
def test_more_rows_in_more_memory_are_bound_by_no_less(rows, others, power, other_power):
    (fewer, more), (small, large) = sorted((rows, others)), sorted((power, other_power))
    least = limit_us(fewer, row_ids=fewer, table_bytes=2**small)
    assert least <= limit_us(more, row_ids=more, table_bytes=2**large) * (1 + 1e-9)


def test_the_rate_in_words():
    assert Limits({"link_rows_us": BEST}).summary("bfloat16") == "link rows 66.2 M/s in 34.4 GB"


@given(st.integers(0, 10), st.one_of(st.none(), st.integers(1, 10**4)))
def test_a_launch_is_found_under_its_name(power, programs):
    launch = Launch(2**power, programs)
    assert as_launch(as_key(launch)) == launch


def at(*times_us):
    return dict(zip(("24", "1536", "24576"), times_us, strict=True))


# One row a program is the faster where there are few rows; an order pays in a large table alone. Small rows: 16 rows a
# program are always the faster, and an order never pays.
SMALL = {
    "as_asked": {"1xall": at(5.0, 50.0, 500.0), "16x528": at(4.0, 40.0, 250.0)},
    "sorted": {"1xall": at(5.0, 45.0, 400.0), "16x528": at(4.0, 38.0, 240.0)},
}
READS = {
    str(GIB): {
        "128": SMALL,
        "264": {
            "as_asked": {"1xall": at(4.0, 50.0, 300.0), "16x528": at(6.0, 40.0, 250.0)},
            "sorted": {"1xall": at(4.0, 45.0, 240.0), "16x528": at(6.0, 38.0, 230.0)},
        },
    },
    str(32 * GIB): {
        "128": SMALL,
        "264": {
            "as_asked": {"1xall": at(4.0, 70.0, 900.0), "16x528": at(6.0, 60.0, 860.0)},
            "sorted": {"1xall": at(4.0, 60.0, 500.0), "16x528": at(6.0, 55.0, 700.0)},
        },
    },
}
PARTITION = {str(size * GIB): at(8.0, 10.0, 30.0) for size in (1, 32)}
MEASURED = {"link_reads_us": READS, "partition_us": PARTITION}


@pytest.mark.parametrize(
    ("rows", "gib", "typed", "expected"),
    [
        (1, 1, {}, ("as_asked", 1, None)),
        (1536, 1, {}, ("as_asked", 16, 528)),
        (24_576, 1, {}, ("as_asked", 16, 528)),
        (24_576, 5, {}, ("as_asked", 16, 528)),  # nearer to 1 than to 32
        (24_576, 6, {}, ("partitioned", 1, None)),
        (24_576, 94, {}, ("partitioned", 1, None)),
        (10**6, 94, {}, ("partitioned", 1, None)),
        (1536, 32, {}, ("as_asked", 16, 528)),
        (24_576, 32, {"order": "as_asked"}, ("as_asked", 16, 528)),
        (24_576, 32, {"rows_per_program": 16}, ("partitioned", 16, 528)),
        (24_576, 1, {"order": "sorted", "programs": None}, ("sorted", 1, None)),
        (24_576, 32, {"sort_from_rows": 10**6}, ("as_asked", 16, 528)),
    ],
)
def test_what_auto_comes_to_follows_from_the_times_of_the_machine(rows, gib, typed, expected):
    asked = {"order": "auto", "rows_per_program": "auto", "programs": "auto", "sort_from_rows": "auto", **typed}
    where = {"rows": rows, "table": "host", "table_bytes": gib * GIB, "multiprocessors": 132}
    assert reading(**asked, **where, row_bytes=264, times=MeasuredReadTimes.of(MEASURED)) == expected


@pytest.mark.parametrize(
    ("row_bytes", "expected"),
    [
        (64, ("as_asked", 16, 528)),
        (160, ("as_asked", 16, 528)),  # nearer to 128 than to 264
        (200, ("partitioned", 1, None)),
        (1024, ("partitioned", 1, None)),
    ],
)
def test_what_auto_comes_to_follows_from_the_nearest_size_of_rows(row_bytes, expected):
    asked = {"order": "auto", "rows_per_program": "auto", "programs": "auto", "sort_from_rows": "auto"}
    where = {"rows": 24_576, "row_bytes": row_bytes, "table": "host", "table_bytes": 32 * GIB}
    assert reading(**asked, **where, times=MeasuredReadTimes.of(MEASURED)) == expected


@pytest.mark.parametrize("missing", MEASURED)
def test_without_one_of_the_curves_no_times_are_known(missing):
    assert MeasuredReadTimes.of({name: curve for name, curve in MEASURED.items() if name != missing}) is None


def test_limits_that_were_published_before_load_without_times():
    peaks = json.loads((H200 / "limits.json").read_text())["peaks"]
    require_rates("peaks", peaks)
    assert MeasuredReadTimes.of(peaks) is None
    asked = {"link rows": 1e9, "link row reads": 1e9 / 264}
    assert Limits(peaks).of(asked, LOAD).by == "link"


@pytest.fixture
def quick(monkeypatch):
    """Measure little, in milliseconds."""
    for name, value in (
        ("SPREAD_BYTES", [2**14, 2**16]), ("ROW_IDS", (2, 4, 12)), ("FEW_ROW_IDS", 2), ("ROW_BYTES", (64, 128, 264)),
        ("SAMPLE_ROW_IDS", 8), ("SAMPLE_CALLS", 2), ("SECONDS", 1e-6),
        ("LEAST_SAMPLES", 1),
    ):  # fmt: skip
        monkeypatch.setattr(link_rows, name, value)
    monkeypatch.setattr(rig, "SAMPLES", 1)


def check_curves(curves, spreads, taken):
    require_rates("peaks", curves)
    assert set(curves) == {"link_reads_us", "partition_us", "link_rows_us"}
    assert all(set(curve) == spreads for curve in curves.values())
    for size in spreads:
        reads, best = curves["link_reads_us"][size], curves["link_rows_us"][size]
        assert set(reads) == {"128", "264"}
        assert set(best) == set(map(str, link_rows.ROW_BYTES))
        numbers = set(map(str, link_rows.ROW_IDS))
        assert set(curves["partition_us"][size]) == numbers
        for row_bytes, of_size in reads.items():
            assert set(of_size) == {"as_asked", "sorted"}
            assert all(set(map(as_launch, of_order)) == set(taken) for of_order in of_size.values())
            assert set(of_size["sorted"]["1xall"]) == numbers
            for count in set(best[row_bytes]):
                fastest = min(curve[count] for of_order in of_size.values() for curve in of_order.values())
                assert best[row_bytes][count] <= fastest, "the bound holds for what launches were measured of, too"
                assert best[row_bytes][count] == fastest or row_bytes == "264", "nothing is measured twice"
        assert set(best["64"]) == numbers - {str(min(link_rows.ROW_IDS))}
    assert MeasuredReadTimes.of(curves).of_partition(8, 2**15) > 0


@pytest.mark.slow
def test_the_curves_are_measured(quick, monkeypatch):
    """Through Triton's interpreter; the processor stands in for the GPU."""
    drawn, on_processor = [], Rig(CPU)
    on_processor.clocks[DEVICE] = on_processor.clocks[HOST]
    at_random = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *args, **named: drawn.append(args) or at_random(*args, **named))
    taken = Launch(1, None), Launch(4, 3)
    monkeypatch.setattr(link_rows, "launches", lambda multiprocessors: taken)
    found = link_rows.curves_of(on_processor, torch.zeros(2**15, dtype=torch.uint8))
    check_curves(found, {str(2**14), str(2**15)}, taken)
    assert {rows for rows, _ in drawn} == {size // row_bytes for size in (2**14, 2**15) for row_bytes in (64, 128, 264)}
    tried = 0
    for reads in (of_size for of_spread in found["link_reads_us"].values() for of_size in of_spread.values()):
        for count in ("4", "12"):  # 64 bytes like 128, and 264 once more, without widening
            fastest = {order: min(curve[count] for curve in of_order.values()) for order, of_order in reads.items()}
            tried += len(taken) + (fastest["as_asked"] <= fastest["sorted"])
    timed = 2 * (2 * 2 * len(taken) * 3 + 3) + tried
    assert len(drawn) == 2 * timed, "at first, and anew before each sample"


@pytest.mark.parametrize("least", [1, 3])
def test_a_slow_call_is_timed_as_often_as_is_asked_for(monkeypatch, least):
    on_processor, called = Rig(CPU), []
    slow = Sample(wall_ms=1e3, device_ms=None, enqueue_ms=None)
    monkeypatch.setattr(on_processor.clocks[HOST], "time", lambda call, uses_device: (called.append(0), slow)[1])
    assert on_processor.best_s(HOST, lambda: None, 0.01, least=least) == 1.0
    assert len(called) == 1 + least, "warming up, and the samples"


def test_without_a_gpu_nothing_is_measured():
    assert link_rows.measure(Rig(CPU)) == {}


@pytest.mark.accelerator
def test_a_gpu_reads_rows_through_its_link(monkeypatch):
    monkeypatch.setattr(link_rows, "SPREAD_BYTES", [2**26, 2**28])
    monkeypatch.setattr(link_rows, "ROW_IDS", (24, 1536, 24_576))
    device = torch.device("cuda")
    found = link_rows.measure(Rig(device))
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    check_curves(found, {str(2**26), str(2**28)}, launches(processors))
