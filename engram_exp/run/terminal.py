"""What the user sees: the card before measuring, progress meanwhile, the table at the end.

On a terminal with colours and a moving bar; elsewhere as plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from engram_exp.machine.disturbance import is_disturbed
from engram_exp.measure.limits import is_beaten
from engram_exp.measure.rates import Limit
from engram_exp.results import schema
from engram_exp.results.schema import OPTIONS, of_role
from engram_exp.run.overridden import COLUMN_OF
from engram_exp.vocabulary import DECODER, FETCH, IN_SERIES, LOOKUP, OK

if TYPE_CHECKING:
    import pandas as pd

    from engram_exp.measure.loop import Progress as ReportProgress
    from engram_exp.measure.loop import Timing
    from engram_exp.run.card import Card

CONFIGURED = of_role(
    schema.STRATEGY, schema.SUBJECT, schema.STEP, schema.ASKED, schema.OPTIONS, schema.WAY, schema.LABEL, schema.FACT
)
ALWAYS_SHOWN = ("strategy", "batch_size", "seq_len", "components")  # where runs differ in them
REFRESH_S = 0.25
STEPS_MS = (10, 20, 50)  # of a model, that a disk is held against
PLAIN_WIDTH = 200  # plain lines are not wrapped at the width of a terminal that is not there


def _is_disturbed(row: Mapping[str, Any]) -> bool:
    if row.get("host_load"):  # was asked for
        return False
    samples = row["iterations"]
    calls = row.get("steps_per_sample" if row["case"] in IN_SERIES else "graph_calls") or 1  # of a sample
    seconds = samples * calls * row["wall_ms_mean"] / 1e3
    return bool(is_disturbed(row.get("preempted") or 0, samples, seconds, row["threads"]))


REMARKS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {  # on measured rows
    "disturbed: other processes took CPUs from it; measure again on an idle machine": _is_disturbed,
    "not steady: its times went on falling or rising": lambda row: row.get("steady") is False,
    "faster than its limit, but within what two measurements differ by": lambda row: (row.get("efficiency") or 0) > 1,
}


class Terminal:
    """Writes to standard output.

    Args:
        quiet: show nothing: another process does.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(highlight=False, quiet=quiet)
        self.is_terminal = console.is_terminal and not quiet
        self.console = console if self.is_terminal else Console(highlight=False, width=PLAIN_WIDTH, quiet=quiet)

    def card(self, card: Card) -> None:
        """Show what is about to be measured."""
        self.console.print(f"\n[bold]{card.title}[/bold]")
        width = max(len(label) for label, _ in card.lines)
        for label, text in card.lines:
            self.console.print(f"  {label:<{width}}  {text}", soft_wrap=True)
        self._table(("case", "runs on", "GB moved", "GFLOP", "limit ms", "limit by"), card.cases)

    @contextmanager
    def progress(self, iterations: int, budget_s: float) -> Iterator[ReportProgress]:
        """A progress report to be called between samples: a bar on a terminal, else a line when a case ends."""
        if self.is_terminal:
            with _Bar(self.console, iterations, budget_s) as report:
                yield report
        else:
            lines = _Lines(self.console)
            yield lines
            lines.finish()

    def results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the rows of one run."""
        heads = (
            "case",
            "median ms",
            "95 % of this process",
            "device ms",
            "n",
            "GB/s",
            "TFLOP/s",
            "Mtokens/s",
            "of limit",
        )
        self._table(heads, [_result_cells(row) for row in rows])
        for status, error in dict.fromkeys((row["status"], row.get("error")) for row in rows if row["status"] != OK):
            self.say(f"  {status}: {error}")
        for row in rows:
            if row["status"] == OK and row.get("exposed_ms_median") is not None:
                self.say(f"  {row['case']}: {_exposed(row)}")
            if row["status"] == OK and row.get("asked_bytes") and row["case"] in (LOOKUP.name, FETCH):
                self.say(f"  {row['case']}: {_served(row)}")
            if row["status"] == OK and row.get("waits_ms"):
                self.say(f"  {row['case']}: {_waits(row)}")
            if row["status"] == OK and row["case"] == DECODER and row.get("window_ms"):
                self.say(f"  {row['case']}: layers with tables are reached after ms {row['window_ms']}")
        for what, holds in REMARKS.items():
            cases = [row["case"] for row in rows if row["status"] == OK and holds(row)]
            if cases:
                self.say(f"  {', '.join(cases)}: {what}")

    def summary(self, frame: pd.DataFrame, swept: Iterable[str] = ()) -> None:
        """Show the runs of a sweep: what tells them apart, the median of every case and of what a step exposes, and
        which were disturbed.

        Args:
            frame: rows of all runs.
            swept: keys that had several values; their columns are shown even if others tell them.
        """
        from engram_exp.analysis.disturbed import disturbance
        from engram_exp.analysis.exposed_rows import with_exposed
        from engram_exp.analysis.subjects import spelled

        if frame.empty:
            self.console.print("no run left results")
            return
        told = frame.assign(**{name: frame[name].replace("", None) for name in CONFIGURED if name != OPTIONS})
        runs = told.groupby("run_id", sort=False).first()
        shown = _telling_apart(runs, {*ALWAYS_SHOWN, *(COLUMN_OF.get(key, OPTIONS) for key in swept)})
        rows = with_exposed(frame)
        cases = list(dict.fromkeys(rows["case"]))
        body = []
        for run_id, run in rows.groupby("run_id", sort=False):
            by_case = {row["case"]: row for row in run.to_dict("records")}
            config = [spelled(value) for value in runs.loc[run_id, shown]]
            body.append([*config, *(_summary_cell(by_case.get(case)) for case in cases)])
        self.console.print("\n[bold]median ms of every run[/bold]")
        self._table((*shown, *(f"{case} ms" if case in shown else case for case in cases)), body)
        if told := disturbance(frame):
            self.say(f"  {told}")

    def say(self, text: str) -> None:
        """Print one line as it is."""
        self.console.print(text, markup=False, soft_wrap=True)

    def _table(self, heads: Sequence[str], body: Sequence[Sequence[str]]) -> None:
        if self.is_terminal:
            table = Table(*heads)
            for cells in body:
                table.add_row(*cells)
            self.console.print(table)
            return
        widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
        for cells in (heads, *body):
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            self.say(f"  {line}".rstrip())


class _Bar:
    """Rich's progress bar without its refreshing thread: it draws only when called, between samples."""

    def __init__(self, console: Console, iterations: int, budget_s: float) -> None:
        self.iterations, self.budget_s = iterations, budget_s
        name, left = TextColumn("{task.description:<10}"), TextColumn("{task.fields[left]}")
        self.bar = Progress(
            name, BarColumn(), MofNCompleteColumn(), left, console=console, auto_refresh=False, transient=True
        )
        self.drawn = 0.0

    def __enter__(self) -> _Bar:
        self.bar.start()
        self.task = self.bar.add_task("", total=None, left="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, case: str, timings: Mapping[str, Timing]) -> None:
        now = time.monotonic()
        if now - self.drawn < REFRESH_S:
            return
        self.drawn = now
        done = sum(len(timing.samples) for timing in timings.values())
        left_s, left = 0.0, 0
        for timing in timings.values():
            if timing.stop_reason:
                continue
            taken = len(timing.samples)
            each_s = timing.spent_s / taken if taken else 0.0
            by_budget = round((self.budget_s - timing.spent_s) / each_s) if each_s else self.iterations
            left += min(self.iterations - taken, max(1, by_budget))
            left_s += min((self.iterations - taken) * each_s, self.budget_s - timing.spent_s)
        phase = f"about {max(0.0, left_s):.0f} s left" if done else "warming up"
        self.bar.update(self.task, description=case, completed=done, total=done + left, left=phase, refresh=True)


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.ended: set[str] = set()
        self.timings: Mapping[str, Timing] = {}

    def __call__(self, case: str, timings: Mapping[str, Timing]) -> None:
        self.timings = timings
        for name, timing in timings.items():
            if timing.stop_reason and name not in self.ended:
                self.ended.add(name)
                self.console.print(
                    f"  timed {name}: {len(timing.samples)} iterations, {timing.spent_s:.1f} s, by {timing.stop_reason}"
                )

    def finish(self) -> None:
        self("", self.timings)


def _telling_apart(runs: pd.DataFrame, always: Collection[str]) -> list[str]:
    """The columns that differ between runs, without those that follow from the others that are shown."""
    varying = [name for name in CONFIGURED if runs[name].nunique() > 1]  # an empty one does not apply, but options
    kept = [name for name in varying if name in always]
    for name in varying:
        if name not in kept and (not kept or (runs.groupby(kept, dropna=False)[name].nunique() > 1).any()):
            kept.append(name)
    return [name for name in varying if name in kept]


def _result_cells(row: Mapping[str, Any]) -> list[str]:
    if row["status"] != OK:
        return [row["case"], row["status"], *[""] * 7]
    interval = "" if row["wall_ms_lo"] is None else f"{row['wall_ms_lo']:.3f} .. {row['wall_ms_hi']:.3f}"
    device = "" if row["device_ms_median"] is None else f"{row['device_ms_median']:.3f}"
    flops = f"{row['tflop_per_s']:.2f}" if row["flops"] else ""
    return [
        row["case"],
        f"{row['wall_ms_median']:.3f}",
        interval,
        device,
        str(row["iterations"]),
        f"{row['gb_per_s']:.2f}",
        flops,
        f"{row['tokens_per_s'] / 1e6:.3f}",
        f"{row['efficiency']:.0%}" if row.get("efficiency") else "",
    ]


def _exposed(row: Mapping[str, Any]) -> str:
    """What a model's step takes longer for want of its rows, in words."""
    low, high, hidden = row["exposed_ms_lo"], row["exposed_ms_hi"], row["hidden_share"]
    interval = "" if low is None else f" ({low:.4f} .. {high:.4f})"
    exposed_ms = row["exposed_ms_median"]
    share = "" if hidden is None else f"; {min(1, max(0, hidden)):.0%} of fetching them is hidden"
    if (exposed_ms if low is None else low) <= 0:
        share = ", which may be nothing"
    return f"{exposed_ms:.4f} ms{interval} longer than with its rows in place{share}"


def _waits(row: Mapping[str, Any]) -> str:
    """How long a model's step waits for its rows, and the least that must be exposed, in words."""
    waits_ms = sum(float(text.partition("=")[2]) for text in row["waits_ms"].split())
    text = f"its layers wait {waits_ms:.4f} ms for their rows ({row['waits_ms']})"
    if (slower_ms := (row.get("exposed_ms_median") or 0.0) - waits_ms) > 0:
        text += f", and {slower_ms:.4f} ms are a decoder that is slowed"
    least_ms, by = row.get("exposed_limit_ms"), row.get("exposed_limit_by")
    if least_ms is None:
        return text
    if not least_ms:
        return f"{text}; all could be hidden"
    high_ms = row.get("exposed_ms_hi")
    beaten = high_ms is not None and is_beaten(high_ms, Limit(least_ms, str(by)))
    unless = ", unless the decoder was quicker than with its rows in place, or the limit is wrong: less was"
    return f"{text}; at least {least_ms:.4f} ms must be exposed, by {by}{unless if beaten else ''}"


def _served(row: Mapping[str, Any]) -> str:
    """How many tokens of a step the file of a table serves, in words: of all layers that have one, at the rate of this
    batch."""
    layers = 1 if row["case"] == FETCH else row["layers"]
    of_step = {step_ms: row["tokens_per_s"] / layers * step_ms / 1e3 for step_ms in STEPS_MS}
    served = ", ".join(f"{tokens:,.0f} in {step_ms} ms" for step_ms, tokens in of_step.items())
    amplified = row["read_amplification"]
    read = "" if amplified is None else f"; {amplified:.3g} bytes are read for each that is asked for"
    return f"the file ({row['page_cache']}) serves the tables of these tokens of a step: {served}{read}"


def _summary_cell(row: Mapping[Any, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['wall_ms_median']:.3f}" if row["status"] == OK else str(row["status"])
