"""The files of a report, from what was gathered: figures drawn by Vega, text by Jinja."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from engram_exp.machine.files import write_text
from engram_exp.pages.sections import EXPOSED, OVER_TOKENS, SECTIONS, Figure

PAGE, SUMMARY, FIGURES = "index.html", "summary.md", "figures"
SVG_WIDTH = 640  # pixels
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
CONFIG = {
    "font": "system-ui, sans-serif",
    "legend": {"orient": "top", "columns": 6, "labelFontSize": 12},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridOpacity": 0.5,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    },
    "view": {"stroke": None},
}


class Named(NamedTuple):
    """A figure and the name of its file, which is its id on the page, too."""

    name: str
    figure: Figure


def write_page(output: Path, facts: Mapping[str, Any], table: str, figures: Sequence[Figure]) -> Path:
    """Write the page, the summary and the figures into a folder; returns the page.

    Args:
        facts: what the templates name.
        table: JSON of all rows, with `columns` and `data`.
    """
    named = [Named(f"{figure.section}_{number}", figure) for number, figure in enumerate(figures, start=1)]
    (output / FIGURES).mkdir(parents=True, exist_ok=True)
    for section in SECTIONS:
        for stale in (output / FIGURES).glob(f"{section}_[0-9]*.svg"):
            stale.unlink()
    for name, figure in named:
        write_text(output / FIGURES / f"{name}.svg", draw(figure, SVG_WIDTH))
    pictures = [name for name in named if name.figure.section == EXPOSED]
    groups = [(name, [one for one in facts["details"] if one.label in name.figure.about]) for name in pictures]
    first = None if groups else next((name for name in named if name.figure.section == OVER_TOKENS), None)
    sections = [
        (heading, text, [name for name in named if name.figure.section == key and name not in (first, *pictures)])
        for key, (heading, text) in SECTIONS.items()
    ]
    templates = Environment(
        loader=PackageLoader("engram_exp.pages"),
        autoescape=lambda name: name is not None and name.startswith(PAGE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["groupby_next"] = _groups_of_neighbours
    parts = {**facts, "sections": [section for section in sections if section[-1]], "folder_of_figures": FIGURES}
    parts |= {"groups": groups, "first": first, "how_to_read": SECTIONS}
    write_text(output / SUMMARY, templates.get_template(f"{SUMMARY}.jinja").render(parts))
    specifications = json.dumps({name: specification(figure) for name, figure in named})
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    page = templates.get_template(f"{PAGE}.jinja").render(
        parts,
        javascript=re.sub("</(?=script)", r"<\\/", vega, flags=re.IGNORECASE),
        specifications=_inside_script(specifications),
        table=_inside_script(table),
    )
    write_text(output / PAGE, page)
    return output / PAGE


def _groups_of_neighbours(rows: Sequence[Any], name: str) -> list[tuple[str, list[Any]]]:
    """Rows behind each other that have the same in a field, and what that is."""
    return [(value, list(group)) for value, group in groupby(rows, key=attrgetter(name))]


def draw(figure: Figure, width: int) -> str:
    """The figure as SVG, that many pixels wide without what stands beside its axes."""
    plain = {**specification(figure), "title": figure.title, "width": width, "autosize": "pad"}
    return vl_convert.vegalite_to_svg(plain, vl_version=VEGA_LITE)


def specification(figure: Figure) -> dict[str, Any]:
    """The figure for the page, in Vega-Lite: as wide as there is room."""
    fit = {"type": "fit-x", "contains": "padding"}
    return {**figure.chart.to_dict(), "config": CONFIG, "width": "container", "autosize": fit}


def _inside_script(text: str) -> str:
    """JSON that is JSON still and cannot end the script element that it stands in, whatever its texts say."""
    return text.replace("<", "\\u003c")
