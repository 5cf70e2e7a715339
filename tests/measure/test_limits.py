"""Limits: measured once, and a bound for every case."""

import json

import pytest
import torch
from common import demo_geometry

from engram_exp.measure import peaks
from engram_exp.measure.limits import Limits, Workload, _rate_at, _time_at
from engram_exp.strategy.plan import PlannedStage, plan_stages

PEAKS = {
    "host_gb_per_s": {"copy": 70.0, "read": 100.0},
    "host_rows_per_s": {"64": 8e8, "256": 2e8},
    "host_tflop_per_s": {"bfloat16": 5.0},
    "device_gb_per_s": {"copy": 4000.0},
    "device_tflop_per_s": {"bfloat16": 700.0},
    "link_to_device_ms": {"1024": 0.01, "1048576": 0.03, "1073741824": 20.0},
}
TOKENS = 64 * 4096


def work(unique_rows=0.8, table="host", **changes):
    return Workload(demo_geometry(), TOKENS, 64, "bfloat16", table, unique_rows, **changes)


def limit(name, place, **changes):
    return Limits(PEAKS).of_stage(PlannedStage(name, place), work(**changes))


def test_each_step_has_the_resource_that_it_must_wait_for():
    gemm_flops = 2 * TOKENS * 1024 * 5120
    rows = TOKENS * 16
    assert limit("projection", "host") == (pytest.approx(gemm_flops / 5e12 * 1e3), "host GEMM")
    assert limit("projection", "device") == (pytest.approx(gemm_flops / 700e12 * 1e3), "device GEMM")
    assert limit("up_embed", "link") == (pytest.approx(10.0, rel=0.1), "link")
    assert limit("lookup", "device", table="host") == (
        pytest.approx(0.8 * rows * 128 / 53.687e9 * 1e3, rel=1e-3),
        "link",
    )
    moved = rows * (4 + 0.8 * 128 + 128)
    assert limit("lookup", "host") == (pytest.approx(moved / 100e9 * 1e3), "host memory")
    assert limit("lookup", "device", table="device") == (pytest.approx(moved / 4000e9 * 1e3), "device memory")
    assert limit("lookup", "host", staged=True) == (pytest.approx(0.8 * rows / 4e8 * 1e3), "host rows")


def test_a_strategy_is_bound_by_its_busiest_resource():
    def of_all(hashing, lookup, projection, **changes):
        places = {"table": "host", "hashing": hashing, "lookup": lookup, "projection": projection}
        return Limits(PEAKS).of_all(plan_stages(places), work(**changes))

    assert of_all("host", "host", "device", staged=True).by == "link"
    assert of_all("host", "host", "host").by == "host GEMM"
    assert of_all("host", "host", "host").ms > limit("projection", "host").ms + limit("lookup", "host").ms
    assert of_all("device", "device", "device").by == "link"
    assert of_all("device", "device", "device", unique_rows=0.1).by == "device GEMM"


def test_without_a_device_the_host_stands_in():
    host = Limits({name: rates for name, rates in PEAKS.items() if name.startswith("host")})
    lookup, projection = PlannedStage("lookup", "host"), PlannedStage("projection", "device")
    assert host.of_stage(projection, work()).by == "host GEMM"
    both = [host.of_stage(stage, work()).ms for stage in (lookup, projection)]
    assert host.of_all([lookup, projection], work()).ms == pytest.approx(sum(both))


def test_curves_are_followed_between_their_points_and_beyond():
    times, rates = {"100": 1.0, "10000": 10.0}, {"64": 8.0, "256": 2.0}
    assert [_time_at(times, x) for x in (1, 100, 5050, 10000, 20000)] == pytest.approx([1, 1, 5.5, 10, 20])
    assert [_rate_at(rates, x) for x in (1, 64, 128, 256, 512)] == pytest.approx([8, 8, 4, 2, 1])


def test_what_was_not_measured_bounds_nothing():
    without_link = Limits({name: rates for name, rates in PEAKS.items() if not name.startswith("link")})
    assert without_link.of_stage(PlannedStage("up_embed", "link"), work()) is None
    assert without_link.of_stage(PlannedStage("lookup", "device"), work()).by == "device memory"
    assert without_link.of_all([PlannedStage("up_ids", "link"), PlannedStage("hashing", "device")], work()).ms > 0


def test_what_a_chunk_leaves_in_a_cache_is_not_charged():
    ids_bytes = (TOKENS + 64 * 2) * 8
    assert limit("hashing", "host").ms == pytest.approx((ids_bytes + TOKENS * 16 * 4) / 100e6)
    assert limit("hashing", "host", staged=True).ms == pytest.approx(ids_bytes / 100e6)
    staged = limit("lookup", "device", table="device", staged=True)
    assert staged.ms == pytest.approx(TOKENS * 16 * 0.8 * 128 / 4000e6)


def test_a_dtype_that_was_not_measured_leaves_the_memory_bound():
    found = Limits(PEAKS).of_stage(
        PlannedStage("projection", "device"), Workload(demo_geometry(), TOKENS, 64, "float16", "host", 1.0)
    )
    assert found.by == "device memory"


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"MEMORY_BYTES": 2**22, "ROWS": 512, "STREAM_BYTES": 2**16, "SECONDS": 1e-3}.items():
        monkeypatch.setattr(peaks, name, value)
    monkeypatch.setattr(peaks, "GEMM_SIZES", ((64, 32, 16),))
    monkeypatch.setattr(peaks, "TRANSFER_BYTES", [2**10, 2**12])


@pytest.mark.slow
def test_this_machine_is_measured(quick):
    found = peaks.measure_peaks(torch.device("cpu"))
    assert set(found) == {"host_gb_per_s", "host_rows_per_s", "host_tflop_per_s"}
    assert all(rate > 0 for rates in found.values() for rate in rates.values())


@pytest.mark.accelerator
def test_a_gpu_and_its_link_are_measured(quick):
    found = peaks.measure_peaks(torch.device("cuda"))
    assert set(found) == {*PEAKS, "link_to_host_ms", "link_rows_per_s_as_asked", "link_rows_per_s_sorted"}
    assert all(rate > 0 for rates in found.values() for rate in rates.values())


def test_rows_are_read_through_the_link_as_the_strategy_reads_them(configure):
    lookup = configure("strategy=uva").lookup
    assert {key: lookup[key] for key in peaks.LINK_LAUNCH} == peaks.LINK_LAUNCH


@pytest.mark.slow
def test_limits_are_measured_once_and_again_when_asked(quick, tmp_path, monkeypatch):
    calls, said = [], []
    monkeypatch.setattr(peaks, "measure_peaks", lambda device: calls.append(device) or PEAKS)

    def get(identity, refresh=False):
        return peaks.machine_limits(tmp_path, identity, torch.device("cpu"), refresh=refresh, announce=said.append)

    assert get({"threads": 2}).peaks == get({"threads": 2}).peaks == PEAKS
    assert len(calls) == len(said) == 1
    get({"threads": 4})
    get({"threads": 2}, refresh=True)
    assert len(calls) == 3
    files = list(tmp_path.glob("cpu-*.json"))
    assert len(files) == 2
    assert json.loads(files[0].read_text())["machine"]["threads"] in (2, 4)
    for file in files:
        file.write_text(file.read_text()[:50])
    assert get({"threads": 2}).peaks == PEAKS
    assert len(calls) == 4


def test_a_run_has_limits_and_efficiencies(quick, run_inline, tmp_path, capsys):
    rows = run_inline("limits=cached", f"limits_dir={tmp_path / 'limits'}", "strategy=kv_on_cpu", "seq_len=40")
    good = [row for row in rows if row["status"] == "ok"]
    assert {row["limit_by"].partition(" ")[0] for row in good} == {"host"}
    for row in good:
        assert row["efficiency"] == pytest.approx(row["limit_ms"] / row["wall_ms_median"])
    assert "measuring what this machine can do, once" in capsys.readouterr().out


def test_an_efficiency_above_one_is_flagged(run_inline, monkeypatch, capsys):
    slow = {name: dict.fromkeys(rates, 1e-9) for name, rates in PEAKS.items() if name.startswith("host")}
    monkeypatch.setattr("engram_exp.run.experiment.machine_limits", lambda *_, **__: Limits(slow))
    run_inline("limits=cached", "cases=[hashing]")
    assert "hashing beats its limit: the limit or the time is wrong" in capsys.readouterr().out


def test_the_rates_in_words():
    assert Limits(PEAKS).summary("bfloat16") == (
        "host memory 100 GB/s, host bfloat16 5 TFLOP/s, device memory 4000 GB/s, device bfloat16 700 TFLOP/s, "
        "link 53.7 GB/s"
    )
