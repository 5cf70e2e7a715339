"""Tables on a disk as a tier: chosen where host memory is too small, and told from where on they are exposed."""

import pandas as pd
import pytest
from made_up import ask, rows, steps, three

from engram_exp import advise
from engram_exp.analysis.advice_in_words import lines_of
from engram_exp.analysis.disk_tier import on_disk
from engram_exp.analysis.selection import AdviceError

FILE = {"table": "file", "page_cache": "cold"}


def with_disk(**columns):
    disk = rows("disk", {1: 5.0, 64: 9.0, 4096: 90.0, 65536: 400.0}, **FILE, **columns)
    return pd.concat([three(), disk], ignore_index=True)


def test_a_file_is_chosen_where_host_memory_is_too_small_for_the_table():
    """1.28 GB of `demo`, a layer."""
    assert [choice.strategy for choice in ask(with_disk()).choices] == ["uva", "kv_on_gpu"]
    assert [choice.strategy for choice in ask(with_disk(), host_memory_gb=2.6).choices] == ["uva", "kv_on_gpu"]
    assert [choice.strategy for choice in ask(with_disk(), host_memory_gb=2.5).choices] == ["disk", "disk"]
    rich = ask(with_disk(), host_memory_gb=0, device_memory_gb=3)
    assert [choice.strategy for choice in rich.choices] == ["device", "device"]


def test_without_a_file_too_little_host_memory_is_told():
    no_device = three()[lambda frame: frame["strategy"] != "device"]
    with pytest.raises(AdviceError, match=r"^host_memory_gb=1: everything that was measured keeps 2\.6 GB there"):
        ask(no_device, host_memory_gb=1)
    with pytest.raises(
        AdviceError, match=r"^device_memory_gb=0, host_memory_gb=1: .*the nearest is device, with 2\.6 GB"
    ):
        ask(three(), host_memory_gb=1)


def test_files_of_some_layers_leave_the_others_in_memory():
    frame = pd.concat(
        [
            rows("disk cache_state=warm", {1: 1}, **FILE),
            rows("kv_on_gpu strategies.14=disk", {1: 1}, page_cache="as_is"),
        ]
    )
    assert on_disk(frame) == ["disk cache_state=warm"]


def test_it_is_told_from_how_many_tokens_on_a_file_is_exposed():
    """Of steps of 10 ms, 100 us are 1 %."""
    exposed_us = {(1, 1): 5, (16, 1): 95, (64, 1): 100, (256, 1): 120, (512, 1): 900}
    frame = pd.concat([steps("disk", exposed_us, **FILE), steps("uva", exposed_us, table="huge")], ignore_index=True)
    told = [note for note in ask_steps(frame).notes if "tables on a disk" in note]
    assert told == [
        "tables on a disk (strategy=disk) expose, of decode: less than 1 % of the step up to 16 tokens, more than that "
        "from 256 tokens on"
    ]
    uneven = steps("disk", {(1, 1): 200, (64, 1): 50, (256, 1): 900}, **FILE)
    (told,) = (note for note in ask_steps(uneven).notes if "on a disk" in note)
    assert told.endswith("of decode: more than that from 256 tokens on"), "64 are hidden, but 1 is not"
    (hidden,) = (note for note in ask_steps(steps("disk", {(1, 512): 20}, **FILE)).notes if "on a disk" in note)
    assert hidden.endswith("(strategy=disk) expose, of prefill: less than 1 % of the step up to 512 tokens")
    (between,) = (note for note in ask_steps(steps("disk", {(64, 1): 100}, **FILE)).notes if "on a disk" in note)
    assert between.endswith("of decode: about 1 % of the step, wherever it was measured")
    assert any(
        line.startswith("  1  ") and "strategy=disk" in line for line in lines_of(ask_steps(frame, host_memory_gb=1))
    )


def in_memory(gb, ms, hit_rate, **columns):
    told = {"hot_gb": gb, "hot_hit_rate": hit_rate, "cache_policy": "lru", "cache_state": "steady"}
    return rows("disk", {64: ms}, **{**FILE, **told, **columns})


def test_what_host_memory_in_front_of_a_file_changes_is_told_and_counts_against_the_budget():
    """Tables of 1.28 GB a layer, two layers."""
    sizes = [in_memory(0.1, 6.0, 0.5), in_memory(0.5, 3.0, 0.8), in_memory(1.0, 2.99, 0.81)]
    warm = in_memory(0.1, 0.5, 1.0, cache_state="warm")
    frame = pd.concat([with_disk(), *sizes, warm], ignore_index=True)
    (worth,) = ask(frame).worth
    assert (worth.place, worth.held_against, worth.without.ms, worth.tokens_per_gb) == ("host", "disk", 9.0, None)
    assert [(size.gb, size.hit_rate, size.time.ms) for size in worth.sizes] == [
        (0.1, 0.5, 6.0), (0.5, 0.8, 3.0), (1.0, 0.81, 2.99)
    ]  # fmt: skip
    assert (worth.pays_from_gb, worth.enough_gb) == (0.1, 0.5)
    line = "host memory for rows in front of a file, disk lru, 64 tokens (64 x 1): disk 9 ms; 0.1 GB 6 ms (50 % hit); "
    assert any(told.startswith(line) for told in lines_of(ask(frame)))
    for budget, ms in ((0, 9.0), (0.3, 0.5), (1.0, 0.5)):
        decode, _ = ask(frame, host_memory_gb=budget).choices
        assert (decode.strategy, decode.ms_per_layer.ms) == ("disk", ms), budget
    with pytest.raises(AdviceError, match=r"^host_memory_gb=1: everything that was measured keeps 2\.0 GB"):
        ask(pd.concat(sizes[2:]), host_memory_gb=1)


def ask_steps(frame, **options):
    asked = {"decode": 64, "prefill": 65536, "device_memory_gb": 0, **options}
    return advise(frame, "deepseek_v41_flash", **asked)
