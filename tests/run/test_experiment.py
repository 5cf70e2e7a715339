"""Whole runs of a tiny model in this process."""

import json
from itertools import count

import numpy as np
import pytest
import torch
from places import DEVICES, KERNEL_DEVICE

from engram_exp import load_results, load_samples
from engram_exp.measure import loop
from engram_exp.results.schema import COLUMNS
from engram_exp.run import experiment as module
from engram_exp.run.card import make_card
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.upload.pinned import PinnedUpload

STRATEGIES = ["kv_on_cpu", "kv_on_gpu"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("components", ["tuned", "original"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_gives_a_row_for_every_case(run_inline, tmp_path, strategy, components, device):
    rows = run_inline(f"strategy={strategy}", f"components={components}", f"hardware={device}")
    upload = "up_kv" if strategy == "kv_on_cpu" else "up_embed"
    statuses = {row["case"]: row["status"] for row in rows}
    link = "ok" if device == "cuda" else "skipped"
    assert statuses == {"hashing": "ok", "lookup": "ok", "projection": "ok", upload: link, "full": "ok"}

    frame = load_results(tmp_path)
    assert tuple(frame.columns) == COLUMNS
    good = frame[frame["status"] == "ok"]
    assert (good["iterations"] == 3).all()
    assert (good["stop_reason"] == "iterations").all()
    assert (good["wall_ms_min"] <= good["wall_ms_median"]).all()
    assert (good["wall_ms_median"] <= good["wall_ms_max"]).all()
    assert (good["bytes_moved"] > 0).all()
    assert (good["gb_per_s"] * good["wall_ms_median"] * 1e6).to_numpy() == pytest.approx(good["bytes_moved"])
    assert frame["wall_ms_p95"].isna().all(), "three samples carry no percentile"
    assert frame["limit_ms"].isna().all()
    assert (frame["used_rows"] == frame["true_rows"]).all()
    assert (frame["table_bytes"] == frame["used_rows"] * 8 * 2).all()

    samples = load_samples(tmp_path)
    assert len(samples) == 3 * len(good)
    assert sorted(samples["order"]) == list(range(len(samples)))
    medians = samples.groupby("case")["wall_ms"].median()
    assert good.set_index("case")["wall_ms_median"].to_dict() == pytest.approx(medians.to_dict(), rel=1e-6)
    on_device = set(samples.loc[samples["device_ms"].notna(), "case"])
    expected = {"full", upload, *(["projection"] if strategy == "kv_on_gpu" else [])}
    assert on_device == (expected if device == "cuda" else set())

    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert environment["cpu_name"] == frame["cpu_name"][0]


@pytest.mark.parametrize(
    ("dtype", "row_bytes", "options"),
    [
        ("bfloat16", 16, []),
        ("fp8", 9, []),
        ("fp8", 9, ["lookup.widen=false"]),
        ("fp8", 9, ["dtype.layout=split"]),
        ("fp8_one_scale", 8, ["dtype.one_scale=0.5"]),  # Triton's interpreter does not round, and need not
    ],
)
@pytest.mark.parametrize("strategy", ["uva", "device"])
@pytest.mark.usefixtures("few_looks")
def test_steps_on_the_device_have_their_rows(run_inline, tmp_path, strategy, dtype, row_bytes, options):
    device = KERNEL_DEVICE.type
    capture = [] if device == "cuda" else ["capture=none"]
    few = "seq_len=2", "batches=2", "iterations=1"
    rows = run_inline(f"strategy={strategy}", f"hardware={device}", f"dtype={dtype}", *few, *capture, *options)
    statuses = {row["case"]: row["status"] for row in rows}
    widening = {"widening": "ok"} if options == ["lookup.widen=false"] else {}
    upload = "ok" if device == "cuda" else "skipped"
    assert statuses == {
        "up_ids": upload, "hashing": "ok", "lookup": "ok", **widening, "projection": "ok", "full": "ok",
    }  # fmt: skip
    frame = load_results(tmp_path)
    assert (frame["row_order"] == "as_asked").all(), "too few rows to sort"
    assert set(frame["rows_per_program"]) == {1 if strategy == "uva" else 32}
    assert set(frame["programs"].fillna(0)) == {0}
    assert (frame["table_bytes"] == frame["used_rows"] * row_bytes)[frame["status"] == "ok"].all()
    assert (frame["row_bytes"] == row_bytes).all()


@pytest.mark.parametrize(
    ("options", "order"),
    [
        (["lookup.order=partitioned", "lookup.rows_per_program=4", "lookup.programs=3"], "partitioned"),
        (["lookup.order=sorted"], "sorted"),
        (["lookup.sort_from_rows=1"], "partitioned"),
    ],
)
@pytest.mark.usefixtures("few_looks")
def test_rows_that_are_read_in_order_come_back_to_their_places(run_inline, options, order):
    device = KERNEL_DEVICE.type
    capture = [] if device == "cuda" else ["capture=none"]
    asked = "cases=[lookup,full]", "seq_len=5"
    rows = run_inline("strategy=uva", f"hardware={device}", "dtype=fp8", *asked, *capture, *options)
    assert [(row["status"], row["row_order"]) for row in rows] == [("ok", order)] * 2, rows
    launch = (4, 3) if "lookup.programs=3" in options else (16, 528)
    assert {(row["rows_per_program"], row["programs"]) for row in rows} == {launch}


def test_the_threads_that_ran_are_told(run_inline):
    assert {row["threads"] for row in run_inline("cases=[hashing]")} == {torch.get_num_threads()}


@pytest.mark.accelerator
@pytest.mark.parametrize("strategy", ["kv_on_cpu", "kv_on_gpu", "uva", "device"])
def test_the_memory_of_full_does_not_depend_on_other_cases(run_inline, strategy):
    shape = ("worker=inline", f"strategy={strategy}", "hardware=cuda", "batch_size=64", "seq_len=64")
    alone = run_inline(*shape, "cases=[full]")[-1]
    among = run_inline(*shape, "cases=all")[-1]
    assert alone["case"] == among["case"] == "full"
    assert 0 < among["peak_device_bytes"] == pytest.approx(alone["peak_device_bytes"], rel=0.02)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("no more"), "oom_host"),
        (OSError(12, "Cannot allocate memory"), "oom_host"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "oom_host"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom_device"),
        (ZeroDivisionError("a defect"), "crash"),
    ],
)
def test_a_failure_is_a_row(run_inline, tmp_path, monkeypatch, error, status):
    def fail(self, *arguments):
        raise error

    monkeypatch.setattr(GatherLookup, "__call__", fail)
    rows = run_inline("schedule=serial")
    assert {row["case"]: row["status"] for row in rows} == {
        "hashing": "ok", "lookup": status, "up_embed": "skipped", "projection": "ok", "full": status,
    }  # fmt: skip
    frame = load_results(tmp_path).set_index("case")
    assert str(error.args[-1]) in frame.loc["lookup", "error"]
    assert str(error.args[-1]) in frame.loc["full", "error"]
    assert frame.loc["projection", "wall_ms_median"] > 0, "one case that fails leaves the others"


def test_hashing_alone_builds_no_table(run_inline, monkeypatch, tmp_path):
    monkeypatch.setattr("engram_exp.steps.tables.host.HostMemory", lambda *_, **__: pytest.fail("a table was built"))
    (row,) = run_inline("model.vocab_per_order=[16000000,16000000]", "cases=[hashing]")
    assert row["status"] == "ok"
    assert row["table_bytes"] == 0
    assert row["used_rows"] > 64_000_000


def test_a_table_scale_is_named(run_inline):
    row = run_inline("model.vocab_per_order=[5000,7000]", "model.table_scale=0.1", "cases=[lookup]")[0]
    assert row["true_rows"] > 24_000
    assert row["used_rows"] < 2_600
    assert row["table_scale"] == 0.1


def test_uploads_can_be_timed_under_any_strategy(run_inline):
    rows = run_inline("strategy=kv_on_gpu", "cases=[up_kv,up_ids,up_rows]")
    assert [row["case"] for row in rows] == ["up_ids", "up_rows", "up_kv"]
    assert {row["error"] for row in rows} == {"no accelerator: host and device are the same memory"}


@pytest.mark.accelerator
@pytest.mark.parametrize("upload", ["pinned", "pageable"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_upload_is_verified_and_timed_on_a_device(run_inline, strategy, upload):
    rows = run_inline(
        f"strategy={strategy}", "cases=[up_ids,up_rows,up_embed,up_kv]", f"upload={upload}", "hardware=cuda"
    )
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert all(row["device_ms_median"] > 0 for row in rows)


@pytest.mark.accelerator
def test_what_crosses_the_link_is_pinned_and_goes_in_one_transfer(run_inline, monkeypatch):
    copies = []
    route_of = PinnedUpload._route

    def counted(self, tensors):
        route = route_of(self, tensors)
        assert all(source.is_pinned() for source in route.sources)
        copies.append([source.numel() for source in route.sources])
        return route

    monkeypatch.setattr(PinnedUpload, "_route", counted)
    rows = run_inline("strategy=kv_on_cpu", "cases=full", "hardware=cuda")
    assert rows[0]["status"] == "ok", rows
    assert rows[0]["pinned_bytes"] > 0
    assert set(map(tuple, copies)) == {(24 * 3 * 16,)}, "keys and value cross together"


def test_few_distinct_ids_rotate_fewer_batches(run_inline, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(24).reshape(2, 12))
    row = run_inline("tokens=ids", f"tokens.path={tmp_path / 'ids.npy'}", "batches=3", "cases=[hashing]")[0]
    assert (row["status"], row["batches"]) == ("ok", 1)


def test_the_budget_ends_a_case(run_inline):
    rows = run_inline("budget_s=1e-9", "cases=[hashing]")
    assert (rows[0]["iterations"], rows[0]["stop_reason"]) == (1, "budget")


def test_repeated_rows_are_counted(run_inline, tmp_path):
    np.save(tmp_path / "ids.npy", np.full((2, 12), 7))
    row = run_inline("tokens=ids", f"tokens.path={tmp_path / 'ids.npy'}", "cases=[lookup]")[0]
    # 4 columns: order 2 differs at the first token, order 3 at the first two; both sequences are the same
    assert row["unique_row_fraction"] == pytest.approx((2 * 2 + 2 * 3) / (24 * 4))


def test_rows_that_come_again_are_told(run_inline, tmp_path):
    ids = f"tokens.path={tmp_path / 'ids.npy'}"
    np.save(tmp_path / "ids.npy", np.full((2, 12), 7))
    row = run_inline("tokens=ids", ids, "cases=[hashing,lookup]")[0]  # verification writes other ids there
    assert row["lru_hit_rate"] == 1, "the second sequence asks for what the first did"
    assert row["reuse_distance_rows"] == 3, "the other columns of a token"
    np.save(tmp_path / "ids.npy", np.arange(24).reshape(2, 12))
    row = run_inline("tokens=ids", ids, "cases=[lookup]", "model.vocab_per_order=[50000,70000]")[0]
    assert row["lru_hit_rate"] == 0
    assert row.get("reuse_distance_rows") is None
    assert run_inline("cases=[projection]")[0].get("lru_hit_rate") is None


def test_how_busy_the_machine_was_before_a_run_is_on_record(run_inline, tmp_path):
    run_inline("cases=[hashing]")
    load = json.loads((tmp_path / "environment.json").read_text())["load_before"]
    assert 0 <= load["others_share"] <= 1
    assert load["load_average_1min"] >= 0
    frame = load_results(tmp_path)
    assert frame["preempted"][0] >= 0
    assert frame["layers"][0] == 2


def test_the_first_reason_of_a_case_stays(run_inline, monkeypatch):
    reasons = count()

    def gather(self, row_ids, original=GatherLookup.__call__):
        if next(reasons) > 20:
            raise RuntimeError(f"error {next(reasons)}")
        return original(self, row_ids)

    monkeypatch.setattr(GatherLookup, "__call__", gather)
    (row,) = run_inline("lookup=gather", "cases=[lookup]", "iterations=100", "budget_s=5")
    assert row["error"] == "RuntimeError('error 22')"


def test_the_card_and_the_rows_agree(run_inline, monkeypatch):
    cards = []
    monkeypatch.setattr(module, "make_card", lambda *args: cards.append(make_card(*args)) or cards[0])
    rows = run_inline("strategy=kv_on_gpu", "lookup=distinct", "batch_size=16", "cases=[lookup]")
    ((_, _, moved, *_),) = cards[0].cases
    assert moved == f"{rows[0]['bytes_moved'] / 1e9:.3g}"


def test_row_and_card_tell_the_pause_before_samples(run_inline, monkeypatch, capsys):
    slept = []
    monkeypatch.setattr(loop.time, "sleep", slept.append)
    (row,) = run_inline("pause_ms=20", "cases=[lookup]", "iterations=4", "lookup.threads=1")
    assert slept.count(0.02) >= 6 + 4, "warming up, and the samples"
    assert (row["status"], row["iterations"], row["pause_ms"]) == ("ok", 4, 20.0)
    assert "lookup.threads=1" in row["options"].split()
    assert "pause_ms" not in row["options"]
    assert "4 batches in turn, 20 ms apart" in capsys.readouterr().out
