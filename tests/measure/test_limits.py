"""Limits: a bound for every amount of work, from rates that were measured or from what is possible at all."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.measure import rates
from engram_exp.measure.limits import POSSIBLE_PER_S, Limit, Limits, is_beaten, possible_ms

MIB = 2**20
PEAKS = {
    "host_gb_per_s": {f"{MIB}": 400.0, f"{64 * MIB}": 100.0},
    "host_rows_per_s": {f"{MIB}": {"64": 3e9, "256": 1e9}, f"{2048 * MIB}": {"64": 8e8, "256": 2e8}},
    "host_tflop_per_s": {"bfloat16": 5.0},
    "device_gb_per_s": {f"{MIB}": 9000.0, f"{64 * MIB}": 4000.0},
    "device_tflop_per_s": {"bfloat16": 700.0},
    "link_to_device_ms": {"1024": 0.01, "1048576": 0.03, "1073741824": 20.0},
    "peers_ms": {"1024": 0.02, "1073741824": 10.0},
    "peer_rows_per_s": {"64": 2e9, "256": 1e9},
    "link_rows_us": {f"{1024 * MIB}": {"64": {"1000": 20.0, "100000": 2000.0}}},
}
HOST_PEAKS = {name: rates for name, rates in PEAKS.items() if name.startswith("host")}
LINK_BYTES_PER_S = 1073741824 / 20e-3
LOAD = SimpleNamespace(dtype="bfloat16", row_bytes=128, spread_bytes=2**31, table_bytes=2**31, row_ids=10_000)


def limit(work, peaks=PEAKS, **changes):
    return Limits(peaks).of(work, SimpleNamespace(**{**vars(LOAD), **changes}))


@pytest.mark.parametrize(
    ("work", "ms", "by"),
    [
        ({"host GEMM": 1e12}, 200, "host GEMM"),
        ({"device GEMM": 7e12}, 10, "device GEMM"),
        ({"host memory": 1e9}, 10, "host memory"),
        ({"device memory": 4e9}, 1, "device memory"),
        ({"host rows": 4e6}, 10, "host rows"),
        ({"link": 1073741824}, 20, "link"),
        ({"link": 1}, 0.01, "link"),
        ({"link rows": LINK_BYTES_PER_S}, 1000, "link"),
        ({"link row reads": 5e6}, 100, "link rows"),
        ({"peers": 1073741824}, 10, "peers"),
        ({"peers": 1}, 0.02, "peers"),
        ({"peer rows": 2e6}, 2**0.5, "peer rows"),
    ],
)
def test_each_resource_has_its_rate(work, ms, by):
    assert limit(work) == (pytest.approx(ms), by)


def test_work_is_bound_by_its_busiest_resource():
    assert limit({"host memory": 1e9, "host rows": 5e6, "link": 1024}) == (pytest.approx(12.5), "host rows")
    assert limit({"host memory": 2e9, "host rows": 5e6, "link": 1024}) == (pytest.approx(20), "host memory")


def test_copies_and_rows_share_the_link():
    assert limit({"link": 1073741824, "link rows": LINK_BYTES_PER_S / 100}) == (pytest.approx(30), "link")


def test_what_was_not_measured_bounds_nothing():
    without_link = {name: rates for name, rates in PEAKS.items() if not name.startswith("link")}
    assert limit({"link": 1e9, "link rows": 1e9, "link row reads": 1e7}, without_link) is None
    assert limit({"link": 1e9, "device memory": 4e9}, without_link).by == "device memory"
    assert limit({"device GEMM": 1e15, "device memory": 4e9}, dtype="float16").by == "device memory"
    assert limit({"tape": 1e9}) is None
    assert limit({}) is None
    assert limit({"host memory": 1e9}, {}) is None


ALL_RANKS = {"all_ranks_gb_per_s": {"links": 8.0, "host memory of all ranks": 4.0, "bytes": 10**6}}


@pytest.mark.parametrize(
    ("work", "ms", "by"),
    [
        ({"link": 6e9, "link rows": 2e9}, 1000.0, "links"),
        ({"host memory": 4e9}, 1000.0, "host memory of all ranks"),
        ({"host memory": 10**6}, None, None),  # a cache may hold it
        ({"device memory": 10**9}, None, None),
    ],
)
def test_ranks_that_work_at_once_are_bound_by_what_they_reach_together(work, ms, by):
    found = limit(work, {**ALL_RANKS, "device_gb_per_s": {}})
    assert found == (None if ms is None else (pytest.approx(ms), by))


def test_what_is_not_asked_for_is_no_bound():
    assert limit({"host GEMM": 0, "host memory": 0, "host rows": 0, "link": 0}) is None


def test_without_a_device_the_host_stands_in_and_does_both():
    assert limit({"device GEMM": 1e12}, HOST_PEAKS) == (pytest.approx(200), "host GEMM")
    assert limit({"host memory": 1e9, "device memory": 2e9}, HOST_PEAKS) == (pytest.approx(30), "host memory")


def test_bytes_that_a_cache_may_hold_are_bound_by_its_rate():
    """1.6 MB may lie in less than 1 MiB, and 100 MB in less than the 64 MiB that have been measured."""
    for moved, gb_per_s in {1.6e6: 400, 100e6: 400, 2 * 64 * MIB: 100, 1e10: 100}.items():
        assert limit({"host memory": moved}).ms == pytest.approx(moved / gb_per_s / 1e6)


def test_rows_that_a_cache_may_hold_are_bound_by_its_rate():
    for spread, rows_per_s in {1000: 3e9, MIB: 3e9, 2047 * MIB: 3e9, 2048 * MIB: 8e8, 2**40: 8e8}.items():
        found = limit({"host rows": 1e6}, spread_bytes=spread, row_bytes=64)
        assert found.ms == pytest.approx(1e9 / rows_per_s)


@given(
    st.dictionaries(st.sampled_from(sorted(POSSIBLE_PER_S)), st.floats(0, 1e15), min_size=1),
    st.sampled_from(sorted(POSSIBLE_PER_S)),
    st.floats(0, 1e15),
)
def test_more_work_never_takes_less_of_the_same_rate(work, name, more):
    """Of a resource whose rate depends on the size, too: bytes are no faster for being more."""
    grown = {**work, name: work.get(name, 0) + more}
    before, after = limit(work), limit(grown)
    assert (before.ms if before else 0) <= (after.ms if after else 0) * (1 + 1e-9)
    assert possible_ms(work) <= possible_ms(grown)


@given(st.dictionaries(st.sampled_from(sorted(POSSIBLE_PER_S)), st.floats(0, 1e15)))
def test_no_machine_beats_what_is_possible(work):
    found = limit(work)
    assert possible_ms(work) <= (found.ms if found else 0)


def test_what_is_possible_is_taken_from_the_busiest_known_resource():
    assert possible_ms({"host memory": 1e14, "device GEMM": 1e17 / 2, "tape": 1e30}) == pytest.approx(1000)
    assert possible_ms({"tape": 1e30}) == possible_ms({}) == 0


def test_every_resource_that_is_measured_has_a_possible_rate():
    assert all(limit({name: 1.0}) for name in POSSIBLE_PER_S)


@pytest.mark.parametrize(("median_ms", "beaten"), [(10.0, False), (9.2, False), (9.0, True), (1e-6, True), (11, False)])
def test_a_limit_is_beaten_by_more_than_noise(median_ms, beaten):
    assert is_beaten(median_ms, Limit(10.0, "link")) is beaten


def test_nothing_beats_an_unknown_limit():
    assert not is_beaten(1e-9, None)


def test_a_new_resource_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "tape.py").write_text(
        "from engram_exp.measure.rates import Limit\n"
        "def measure(rig): return {'tape_gb_per_s': {'1': 0.3}}\n"
        "def bounds(work, load, peaks): yield Limit(work.get('tape', 0) / 0.3e6, 'tape')\n"
        "def in_words(peaks, dtype): yield 'tape 0.3 GB/s'\n"
    )
    monkeypatch.setattr(rates, "__path__", [*rates.__path__, str(tmp_path)])
    rates.resources.cache_clear()
    try:
        assert limit({"tape": 3e8, "host memory": 1e9}) == (pytest.approx(1000), "tape")
        assert "tape 0.3 GB/s" in Limits(PEAKS).summary("bfloat16")
    finally:
        rates.resources.cache_clear()


def test_the_rates_in_words():
    assert Limits(PEAKS).summary("bfloat16") == (
        "device bfloat16 700 TFLOP/s, device memory 4000 GB/s, host bfloat16 5 TFLOP/s, host memory 100 GB/s, "
        "link 53.7 GB/s, link rows 50 M/s in 1.1 GB, peers 107.4 GB/s"
    )
    assert Limits(HOST_PEAKS).summary("float32") == "host memory 100 GB/s"
