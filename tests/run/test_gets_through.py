"""What docs/measuring.md says still gets through does: whoever closes one of these holes finds the line to delete."""

import functools

import pytest
from common import ROOT

from engram_exp.machine.placement import poison_of
from engram_exp.steps.lookup.gather import GatherLookup

look_up = GatherLookup.__call__


def only_where_it_is_poisoned(self, row_ids):
    """Looks at each token of its output, and works where it finds what no correct step returns."""
    tokens = row_ids.shape[0] * row_ids.shape[1]
    before = self.rows[: row_ids.numel()].view(tokens, -1).clone()
    stale = ~before.isnan().any(dim=1) if before.is_floating_point() else (before != poison_of(before.dtype)).all(dim=1)
    result = look_up(self, row_ids)
    result[stale] = before[stale]
    return result


def remembered_by_its_first_ids(self, row_ids):
    known = self.__dict__.setdefault("known", {})
    key = tuple(row_ids.flatten()[:8].tolist())
    if key not in known:
        known[key] = look_up(self, row_ids).clone()
    return known[key].clone()


def wrong_now_and_then(self, row_ids):
    self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
    result = look_up(self, row_ids)
    if self.calls in (25, 35):  # of 47 or more; one token of 16,000, of which two are drawn to be looked at
        result[len(result) // 2 + 7] = 0
    return result


def made_up_from_their_ids(self, row_ids):
    return self.table.contents(row_ids).flatten(0, 1).flatten(1)


CHEATS = {
    only_where_it_is_poisoned: "computes only where its output holds poison",
    remembered_by_its_first_ids: "remembers results by a glimpse of its input",
    wrong_now_and_then: "is wrong now and then, at few tokens",
    made_up_from_their_ids: "makes rows up from their ids",
}


@pytest.mark.slow
@pytest.mark.parametrize(("cheat", "line"), CHEATS.items())
def test_what_is_said_to_get_through_does(run_inline, monkeypatch, cheat, line):
    build = GatherLookup.__init__

    @functools.wraps(build)
    def keeping_the_table(self, table, *arguments, **options):
        self.table = table
        build(self, table, *arguments, **options)

    monkeypatch.setattr(GatherLookup, "__init__", keeping_the_table)
    monkeypatch.setattr(GatherLookup, "__call__", cheat)
    shape = ("batch_size=4", "seq_len=4000", "iterations=40", "batches=3", "budget_s=5")
    (row,) = run_inline(*shape, "strategy=kv_on_cpu", "cases=[lookup]")
    assert row["status"] == "ok", row["error"]
    assert line in (ROOT / "docs/measuring.md").read_text()
