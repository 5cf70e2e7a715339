"""What a machine can do is measured once and kept."""

import json
import logging

import pytest
import torch

from engram_exp.machine.host_memory import HostMemory
from engram_exp.measure import kept, peaks, rig
from engram_exp.measure.rates import gemm, link, link_rows, memory, rows

CPU = torch.device("cpu")
FOUND = {"host_gb_per_s": {"1024": 100.0}, "host_rows_per_s": {"1024": {"64": 1e8}}}


@pytest.fixture
def quick(monkeypatch):
    """Measure little, in milliseconds."""
    for module, name, value in (
        (rig, "HOST_BYTES", 2**22), (rig, "DEVICE_BYTES", 2**22), (rig, "SECONDS", 1e-3), (memory, "SHORT", 1e-3),
        (rows, "SHORT", 1e-3), (rows, "ROWS", 512), (memory, "SAMPLE_BYTES", 2**19), (gemm, "SIZES", ((64, 32, 16),)),
        (link, "TRANSFER_BYTES", [2**10, 2**12]), (link_rows, "SPREAD_BYTES", [2**20]),
        (link_rows, "ROW_IDS", (24, 256)), (link_rows, "SECONDS", 1e-3),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


def values(found):
    if isinstance(found, dict):
        assert found
        return [value for inner in found.values() for value in values(inner)]
    return [found]


@pytest.mark.slow
def test_this_machine_is_measured(quick):
    found = peaks.measure_peaks(rig.Rig(CPU))
    assert set(found) == {"host_gb_per_s", "host_rows_per_s", "host_tflop_per_s"}
    assert all(value > 0 for value in values(found))
    assert set(found["host_gb_per_s"]) == {str(2**power) for power in range(18, 23)}, "no more than there is memory"
    assert set(found["host_rows_per_s"]) == {str(2**20), str(2**22)}
    assert set(found["host_rows_per_s"][str(2**20)]) == set(map(str, rows.ROW_BYTES))


@pytest.mark.accelerator
def test_a_gpu_and_its_link_are_measured(quick):
    found = peaks.measure_peaks(rig.Rig(torch.device("cuda")))
    on_host = {"host_gb_per_s", "host_rows_per_s", "host_tflop_per_s"}
    of_link = {"link_to_device_ms", "link_reads_us", "partition_us", "link_rows_us"}
    assert set(found) == {*on_host, *of_link, "device_gb_per_s", "device_tflop_per_s"}
    assert all(value > 0 for value in values(found))


@pytest.fixture
def get(tmp_path, monkeypatch):
    """The limits of a machine whose measuring takes no time; `get.calls` and `get.said` tell what was done."""
    calls, said = [], []
    monkeypatch.setattr(peaks, "measure_peaks", lambda rig: calls.append(rig.device) or FOUND)
    monkeypatch.setattr(rig, "HOST_BYTES", 2**23)
    monkeypatch.setattr(HostMemory, "huge_page_share", lambda self: 0.5)

    def limits(threads=2, folder=tmp_path / "limits", refresh=False):
        return peaks.machine_limits(folder, {"threads": threads}, CPU, refresh=refresh, announce=said.append)

    def get(**options):
        return limits(**options).peaks

    get.calls, get.said, get.limits = calls, said, limits
    return get


@pytest.mark.slow
def test_limits_are_measured_once_and_again_when_asked(get, tmp_path):
    assert get() == get() == FOUND
    assert len(get.calls) == len(get.said) == 1
    get(threads=4)
    get(refresh=True)
    assert len(get.calls) == 3
    files = list((tmp_path / "limits").glob("cpu-*.json"))
    assert len(files) == 2
    kept = json.loads(files[0].read_text())
    assert kept["machine"]["threads"] in (2, 4)
    assert 0 <= kept["load"]["others_share"] <= 1
    assert kept["memory"] == {"host_bytes": 2**23, "huge_page_share": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now", "times"), [(2**23, 2**24, 2), (2**23, 2**24 - 1, 1), (2**23, 2**22, 1)])
def test_limits_are_measured_anew_where_much_more_memory_is_free(get, monkeypatch, before, now, times):
    for size in (before, now):
        monkeypatch.setattr(rig, "free_host_bytes", lambda size=size: size * rig.FREE_SHARE)
        monkeypatch.setattr(rig, "HOST_BYTES", 2**30)
        get()
    assert len(get.calls) == times
    told = [text for text in get.said if "of up to 0.0 GB of host memory, 50% in huge pages, and more is free" in text]
    assert len(told) == times - 1


@pytest.mark.slow
def test_limits_of_other_pages_are_not_taken(get, monkeypatch):
    for setting in ("[always] madvise never", "always madvise [never]", "[always] madvise never"):
        monkeypatch.setattr(peaks, "transparent_huge_pages", lambda setting=setting: setting)
        get()
    assert len(get.calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("share", "pages"), [(0.5, ", 50% in huge pages"), (0.0, ", 0% in huge pages"), (None, "")])
def test_the_memory_that_limits_were_measured_on_is_told_whenever_they_are_used(get, monkeypatch, share, pages):
    monkeypatch.setattr(rig, "HOST_BYTES", 2**27)
    monkeypatch.setattr(HostMemory, "huge_page_share", lambda self: share)
    for _ in range(2):
        assert get.limits().summary("bfloat16") == f"host memory 100 GB/s; on up to 0.1 GB of host memory{pages}"


MEMORY = '"memory": {"host_bytes": 8388608, "huge_page_share": null}'
GOOD = '"peaks": {"host_gb_per_s": {"1024": 1.0}}'
DAMAGED_PEAKS = (
    "{}", '{"host_gb_per_s": {}}', '{"host_gb_per_s": {"1024": 0.0}}', '{"host_gb_per_s": {"1024": NaN}}',
    '{"host_gb_per_s": {"1024": "fast"}}', "[1.0]", "null",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "damaged",
    [
        "", '{"machine": {}, "pea', "[]", f"{{{MEMORY}}}", f"{{{GOOD}}}",
        f'{{{GOOD}, "memory": {{"host_bytes": "much", "huge_page_share": null}}}}',
        *(f'{{{MEMORY}, "peaks": {found}}}' for found in DAMAGED_PEAKS),
    ],
)  # fmt: skip
def test_a_damaged_file_is_measured_anew_and_replaced(get, tmp_path, caplog, damaged):
    get()
    (file,) = (tmp_path / "limits").iterdir()
    whole = json.loads(file.read_text())["peaks"]
    file.write_text(damaged)
    assert get() == FOUND
    assert len(get.calls) == 2
    assert json.loads(file.read_text())["peaks"] == whole
    assert file.name in caplog.text


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_costs_a_warning(get, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert get(folder=tmp_path / "file" / "limits") == FOUND
    assert "not kept" in caplog.text


@pytest.mark.slow
def test_a_full_disk_costs_a_warning(get, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_text", full)
    assert get() == FOUND
    assert "No space left on device" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("others", "warned"), [(0.05, False), (0.4, True)])
def test_limits_that_others_may_have_spoilt_are_said_to_be(get, monkeypatch, caplog, others, warned):
    monkeypatch.setattr(peaks.LoadMeter, "read", lambda self: {"others_share": others})
    with caplog.at_level(logging.WARNING):
        get()
    assert ("limits=refresh" in caplog.text) is warned


def test_a_run_has_limits_and_efficiencies(quick, run_inline, tmp_path, capsys):
    rows = run_inline("limits=cached", f"limits_dir={tmp_path / 'limits'}", "strategy=kv_on_cpu", "seq_len=40")
    good = [row for row in rows if row["status"] == "ok"]
    assert {row["limit_by"].partition(" ")[0] for row in good} == {"host"}
    for row in good:
        assert row["efficiency"] == pytest.approx(row["limit_ms"] / row["wall_ms_median"])
    told = " ".join(capsys.readouterr().out.split())
    assert "measuring what this machine can do, once" in told
    assert "; on up to 0.0 GB of host memory" in told
