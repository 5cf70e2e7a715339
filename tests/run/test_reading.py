"""How rows are read, the same in kernel, card and rows of a run; and how many of them are distinct."""

import pytest
import torch
from common import TINY
from places import KERNEL_DEVICE

from engram_exp.layer.tokens import Batch
from engram_exp.measure.limits import Limits
from engram_exp.run.again import distinct_among
from engram_exp.run.job import Job
from engram_exp.run.job_rows import job_columns
from engram_exp.steps.lookup.triton import TritonLookup


def machine_that_reads(as_asked_us, sorted_us):
    """Limits with made-up times of reading 1 or 1,000 rows by two launches."""

    def by_launch(us):
        return {"4x2": {"1": us, "1000": 1000 * us}, "8xall": {"1": 2 * us, "1000": us}}

    reads = {"as_asked": by_launch(as_asked_us), "sorted": by_launch(sorted_us)}
    partition = {"1": 1e-9, "1000": 1e-9}
    return Limits({"link_reads_us": {"1024": {"128": reads}}, "partition_us": {"1024": partition}})


IN_CHUNKS = "schedule=pipelined", "schedule.chunk_tokens=8", "cases=[full]"


@pytest.mark.parametrize(
    ("strategy", "us", "options", "expected"),
    [
        ("uva", (2.0, 1.0), [], ("partitioned", 8, None)),
        ("uva", (1.0, 2.0), ["lookup.order=sorted"], ("sorted", 8, None)),
        ("uva", (1.0, 2.0), ["lookup.programs=2"], ("as_asked", 4, 2)),
        ("uva", (1.0, 2.0), ["lookup.sort_from_rows=3"], ("partitioned", 8, None)),
        ("uva", (1.0, 2.0), ["limits=none", "seq_len=48"], ("as_asked", 16, 528)),
        ("both", (1.0, 2.0), [], ("as_asked", 8, None)),
        ("both", (1.0, 2.0), ["limits=none", "seq_len=48"], ("as_asked", 32, 16)),  # beside the copies
        ("uva", (1.0, 2.0), ["limits=none", *IN_CHUNKS], ("as_asked", 32, 16)),  # beside the chunk before
    ],
)
@pytest.mark.usefixtures("few_looks")
def test_what_auto_comes_to_is_the_same_in_kernel_card_and_rows(
    run_inline, monkeypatch, capsys, strategy, us, options, expected
):
    read = set()

    def watched(self, row_ids, original=TritonLookup.__call__):
        read.add(tuple(self.reading(rows=row_ids.numel())))
        return original(self, row_ids)

    monkeypatch.setattr(TritonLookup, "__call__", watched)
    monkeypatch.setattr("engram_exp.run.known_limits.machine_limits", lambda *_, **__: machine_that_reads(*us))
    shape = ["limits=cached", "seq_len=8", "capture=none", "cases=[lookup,full]", "batches=1", "iterations=1"]
    rows = run_inline(f"strategy={strategy}", f"hardware={KERNEL_DEVICE.type}", *shape, *options)
    assert {row["status"] for row in rows} == {"ok"}, rows
    assert read == {expected}
    assert {(row["row_order"], row["rows_per_program"], row["programs"]) for row in rows} == {expected}
    order, at_a_time, programs = expected
    told = f"read {order}, {at_a_time} at a time, in {f'{programs} programs' if programs else 'a program'}"
    assert told in " ".join(capsys.readouterr().out.split())


def test_an_order_that_follows_from_the_machine_is_not_told_before_it_is_known(configure, tmp_path):
    def told(*overrides):
        return job_columns(Job.create(configure(*TINY, *overrides), {}, tmp_path))["row_order"]

    assert told("strategy=uva", "limits=cached") == ""
    assert told("strategy=uva", "limits=cached", "lookup.order=sorted") == "sorted"
    assert told("strategy=uva", "limits=cached", "lookup.sort_from_rows=1") == "partitioned"
    assert told("strategy=uva", "limits=none") == told("strategy=device", "limits=cached") == "as_asked"
    assert told("strategy=kv_on_gpu", "limits=cached") == ""


def test_what_auto_decides_is_told_apart_from_what_is_typed(configure, tmp_path):
    def by_auto(*overrides):
        return job_columns(Job.create(configure(*TINY, *overrides), {}, tmp_path))["by_auto"].split()

    assert by_auto("strategy=uva") == ["row_order", "rows_per_program", "programs"]
    assert by_auto("strategy=uva", "lookup.order=sorted", "lookup.programs=null") == ["rows_per_program"]
    assert by_auto("components=vllm_0_33", "dtype=fp8", "dtype.layout=split") == []
    assert by_auto("strategy=kv_on_gpu") == []


def test_rows_are_distinct_in_a_batch_and_among_all(tiny_plan, configure):
    rows = int(tiny_plan.moduli.sum())
    batches = [Batch(torch.full((2, 5), token), torch.full((2, 2), -1)) for token in (7, 7, 8)]
    batches[1] = Batch(torch.arange(10).view(2, 5), torch.full((2, 2), -1))
    found = distinct_among(tiny_plan, batches, rows)
    row_ids = torch.stack([tiny_plan.row_ids(*batch) for batch in batches])
    assert found.in_first == len(torch.unique(row_ids[0])) / row_ids[0].numel()
    assert found.in_all == len(torch.unique(row_ids)) / row_ids.numel()
    assert found.batches == 3
    first = row_ids[0].flatten(0, 1)
    in_order = {order: first[:, slice(*tiny_plan.first_column[order - 1 : order + 1])] for order in found.by_order}
    assert sum(asked.numel() for asked in in_order.values()) == first.numel()
    assert found.by_order == {order: len(torch.unique(asked)) / asked.numel() for order, asked in in_order.items()}
    assert found.in_first < found.in_all < 1
