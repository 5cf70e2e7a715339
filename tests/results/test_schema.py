"""One table of columns: documented, and every version of it known."""

from common import ROOT

from engram_exp import load_results
from engram_exp.results import schema
from engram_exp.results.document import document
from engram_exp.results.schema import COLUMNS, COLUMNS_OF, SAMPLE_TABLE, TABLE


def test_the_documentation_is_what_the_schema_prints():
    assert (ROOT / "docs/columns.md").read_text() == document()


def test_every_column_is_known_and_explained():
    names = [column.name for column in TABLE]
    assert len(set(names)) == len(names)
    for column in (*TABLE, *SAMPLE_TABLE):
        assert column.kind in (schema.TEXT, schema.CHOICE, schema.NUMBER, schema.TRUTH)
        assert column.role in schema.ROLES
        assert column.meaning
        assert f"\n| `{column.name}` |" in document()
    assert all("|" not in cell for column in TABLE for cell in map(str, column))


def test_columns_are_only_added():
    assert [len(COLUMNS_OF[version]) for version in (1, 2, 3, 4, 5, 6, 7)] == [64, 76, 80, 81, 82, 106, 124]
    for older, newer in ((1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)):
        assert COLUMNS_OF[newer][: len(COLUMNS_OF[older])] == COLUMNS_OF[older]
    published = (ROOT / "outputs/reference/h200/text/0/results.csv").read_text().partition("\n")[0]
    assert published.split(",") == list(COLUMNS_OF[2])


def test_every_group_of_options_has_its_column():
    groups = {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()} - {"hydra"}
    assert groups == set(schema.of_kind(schema.CHOICE))


def test_published_campaigns_have_what_the_newest_schema_added_empty():
    frame = load_results(ROOT / "outputs/reference/h200/text")
    assert tuple(frame.columns) == COLUMNS
    assert set(frame["options"]) == {""}
    assert set(frame["fusion"]) == {"none"}, "there was no other"
    assert set(frame["decoder"]) == {"none"}, "a layer was timed alone"
    assert set(frame["pause_ms"]) == {0.0}, "calls followed each other at once"
    assert set(frame["graph_calls"]) == {0}, "each was launched by itself"
    assert frame["steps_per_sample"].isna().all(), "of no model's step"
    assert (frame[["host_load", "link_load_gb_per_s", "link_load_block_kib"]] == 0).all(axis=None), (
        "nothing beside them"
    )
    assert frame[["layers", "preempted", "sm_clock_mhz_min", "link_load_reached_gb_per_s"]].isna().all(axis=None)
