"""Runs beside which CPUs or the link are kept busy."""

import psutil
import pytest

from engram_exp.run import experiment as module


@pytest.mark.parametrize("error", [None, ValueError("lost")])
def test_other_processes_are_busy_while_samples_are_taken(run_inline, monkeypatch, error):
    before, meanwhile = psutil.Process().children(), []

    def measure(*arguments, original=module.measure, **options):
        meanwhile.extend(each for each in psutil.Process().children() if each not in before)
        if error:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(module, "measure", measure)
    (row,) = run_inline("host_load=1", "cases=[lookup]")
    assert (row["status"], row["host_load"]) == ("crash" if error else "ok", 1)
    assert "host_load" not in row["options"]
    assert len(meanwhile) == 1
    assert psutil.Process().children() == before


def test_without_a_link_its_load_is_refused(run_inline):
    (row,) = run_inline("link_load_gb_per_s=2", "link_load_block_kib=64", "cases=[lookup]")
    assert row["status"] == "refused"
    assert row["error"].startswith("link_load_gb_per_s=2.0: there is no link to load: the device is cpu")
    assert (row["link_load_gb_per_s"], row["link_load_block_kib"]) == (2, 64)
    assert "link_load" not in row["options"]


def test_without_a_load_the_size_of_its_blocks_makes_no_other_run(run_inline):
    (row,) = run_inline("link_load_block_kib=64", "cases=[hashing]")
    assert (row["link_load_gb_per_s"], row["link_load_block_kib"], row["link_load_reached_gb_per_s"]) == (0, 0, None)
    assert "link_load" not in row["options"]


@pytest.mark.accelerator
@pytest.mark.parametrize("strategy", ["kv_on_gpu", "uva"])
def test_rows_are_right_while_the_link_is_loaded_and_tell_how_much_it_was(run_inline, strategy):
    rows = run_inline(f"strategy={strategy}", "hardware=cuda", "link_load_gb_per_s=2", "iterations=200", "pause_ms=1")
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["link_load_gb_per_s"] for row in rows} == {2}
    assert len({row["link_load_reached_gb_per_s"] for row in rows}) == 1
    assert 0 < rows[0]["link_load_reached_gb_per_s"] <= 2
