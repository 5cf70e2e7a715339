"""What `docs/columns.md` holds: the schema as a page."""

from __future__ import annotations

from collections.abc import Iterable

from engram_exp.results.schema import RESULTS, ROLES, SAMPLE_TABLE, SAMPLES, TABLE, Column


def document() -> str:
    """What `docs/columns.md` holds."""
    return "\n".join(
        [
            "# The columns",
            "",
            "Printed by `python -m engram_exp.results.schema > docs/columns.md`. Columns are only added: `since` is",
            "the first version of the schema that has one, and files of every version load. An empty cell: unknown, or",
            "without meaning for the row. GB is 10^9 bytes.",
            "",
            f"## {RESULTS}: one row per case",
            "",
            *_table(TABLE, with_role=True),
            "",
            "Roles:",
            "",
            *(f"- {role}: {meaning}" for role, meaning in ROLES.items()),
            "",
            f"## {SAMPLES}: one row per timed iteration",
            "",
            *_table(SAMPLE_TABLE, with_role=False),
            "",
        ]
    )


def _table(columns: Iterable[Column], *, with_role: bool) -> list[str]:
    heads = ["column", "kind", "unit", *(["role", "since"] if with_role else []), "meaning"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for column in columns:
        role = [column.role, str(column.since)] if with_role else []
        cells = [f"`{column.name}`", column.kind, column.unit, *role, column.meaning]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
