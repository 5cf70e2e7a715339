import csv
import gzip

import pytest

import engram_exp
from engram_exp import load_results, load_samples
from engram_exp.analysis.summary import markdown
from engram_exp.results import write
from engram_exp.results.load import LeftOutWarning, UncheckedWarning
from engram_exp.results.schema import COLUMNS, COLUMNS_OF, SAMPLE_COLUMNS, SCHEMA_VERSION
from engram_exp.results.write import write_sweep

pytestmark = pytest.mark.filterwarnings("ignore:.*unchecked run")  # files are edited here, so without their digests


def write_run(folder, run_id="a", status="ok", **columns):
    folder.mkdir(parents=True)
    row = {
        "run_id": run_id,
        "status": status,
        "case": "full",
        "wall_ms_median": 1.5,
        "strategy": "uva",
        "batch_size": 64,
        **columns,
    }
    write.write_run(folder, {}, [row, {**row, "case": "lookup"}])
    (folder / "environment.json").unlink()  # without the digests, what stands in a file decides
    return folder / "results.csv"


def test_many_runs_become_one_frame(tmp_path):
    for number in range(3):
        write_run(tmp_path / f"sweep/{number}", run_id=str(number), error="a, b\n  'c' \"d\"")
    frame = load_results(tmp_path)
    assert len(frame) == 6
    assert tuple(frame.columns) == COLUMNS
    assert frame["run_id"].tolist() == ["0", "0", "1", "1", "2", "2"], "text stays text"
    assert frame["error"][0] == "a, b 'c' \"d\"", "a row is one line"
    assert frame["wall_ms_median"].dtype == float
    assert frame["batch_size"].dtype == int
    assert (frame["schema_version"] == SCHEMA_VERSION).all()
    assert len(load_results(tmp_path / "sweep/1")) == len(load_results(tmp_path / "sweep/1/results.csv")) == 2


@pytest.mark.parametrize(
    ("written", "options", "loaded"),
    [
        ("uva strategies.14=uva", "", "uva"),
        ("uva strategies.1=uva strategies.14=kv_on_gpu", "seed=2", "uva strategies.14=kv_on_gpu"),
        ("uva strategies.14=kv_on_gpu", "", "uva strategies.14=kv_on_gpu"),
        ("disk strategies.14=disk cache_state=warm", "", "disk cache_state=warm"),
        ("device strategies.14=device", "strategy.table=host", "device strategies.14=device"),  # no longer the same
    ],
)
def test_a_layer_whose_strategy_is_that_of_the_run_says_nothing(tmp_path, written, options, loaded):
    write_run(tmp_path / "run", strategy=written, options=options)
    assert set(load_results(tmp_path)["strategy"]) == {loaded}


@pytest.mark.parametrize(
    ("decoder", "options", "steps", "others"),
    [
        ("dense_8b", "", 4, ""),
        ("dense_8b", "steps_per_sample=1", 1, ""),
        ("dense_8b", "lookup.x=1 steps_per_sample=16 tokens.share=0.1", 16, "lookup.x=1 tokens.share=0.1"),
        ("none", "steps_per_sample=2 tokens.share=0.1", None, "tokens.share=0.1"),
    ],
)
def test_steps_of_a_sample_were_an_option_once(tmp_path, decoder, options, steps, others):
    old = write_run(tmp_path / "old", decoder=decoder, options=options)
    header, *lines = [line.rsplit(",", len(COLUMNS) - len(COLUMNS_OF[11]))[0] for line in old.read_text().splitlines()]
    old.write_text("\n".join([header, *(f"11,{line.partition(',')[2]}" for line in lines), ""]))
    write_run(tmp_path / "new", run_id="b", decoder=decoder, options=others, steps_per_sample=steps)
    frame = load_results(tmp_path)
    assert set(frame["schema_version"]) == {11, SCHEMA_VERSION}
    assert set(frame["steps_per_sample"].dropna()) == ({steps} - {None})
    assert set(frame["options"]) == {others}


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_earlier_schemas_load(tmp_path, version):
    write_run(tmp_path / "new", run_id="new")
    old = write_run(tmp_path / "old", run_id="old")
    newer = len(COLUMNS) - len(COLUMNS_OF[version])
    header, *lines = [line.rsplit(",", newer)[0] for line in old.read_text().splitlines()]
    older = [f"{version},{line.partition(',')[2]}" for line in lines]
    old.write_text("".join(f"{line}\n" for line in (header, *older)))
    frame = load_results(tmp_path)
    runs = frame.groupby("schema_version")["run_id"].unique().map(list).to_dict()
    assert runs == {version: ["old"], SCHEMA_VERSION: ["new"]}
    assert frame["schedule"].tolist() == frame["options"].tolist() == [""] * 4


def cut(text):
    return text[:-20]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: "", "header"),
        (lambda text: text.partition("\n")[0] + "\n", "holds no rows"),
        (cut, "last line is cut"),
        (lambda text: cut(text) + "\n", "fields instead of"),
        (lambda text: text.replace("wall_ms_median", "wall_s_median"), "header"),
        (lambda text: text.replace(f"\n{SCHEMA_VERSION},", "\n99,"), "schema version '99'"),
        (lambda text: text.replace("full", "full,extra"), "fields instead of"),
    ],
)
def test_damaged_files_are_named_and_skipped(tmp_path, damage, says):
    write_run(tmp_path / "good", run_id="good")
    bad = write_run(tmp_path / "bad", run_id="bad")
    bad.write_text(damage(bad.read_text()))
    with pytest.warns(UserWarning, match=rf"bad/results\.csv is left out: .*{says}"):
        frame = load_results(tmp_path)
    assert set(frame["run_id"]) == {"good"}


@pytest.mark.parametrize(
    "damage", [lambda text: text[: text.rindex("\n", 0, -1) + 1], lambda text: text.replace("uva", "device")]
)
def test_what_no_row_shows_its_digest_does(tmp_path, damage):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"run_id": "a", "status": "ok", "case": case, "strategy": "uva"} for case in ("full", "lookup")]
    write.write_run(folder, {}, rows)
    assert len(load_results(tmp_path)) == 2
    (folder / "results.csv").write_text(damage((folder / "results.csv").read_text()))
    with pytest.warns(LeftOutWarning, match="it is not what its run wrote"):
        assert load_results(tmp_path).empty


@pytest.mark.parametrize("record", [None, "", "{", "[1]", '{"sha256": 1}'])
def test_runs_without_a_readable_record_are_loaded_and_counted(tmp_path, record):
    for number in range(3):
        file = write_run(tmp_path / str(number), run_id=str(number)).with_name("environment.json")
        if record is not None and number:
            file.write_text(record)
    (tmp_path / "good").mkdir()
    write.write_run(tmp_path / "good", {}, [{"run_id": "good", "status": "ok", "case": "full"}])
    with pytest.warns(UncheckedWarning) as told:
        assert len(load_results(tmp_path)) == 7
    says = f"3 unchecked runs: no readable environment.json beside the results, as in {tmp_path / '0'}"
    assert [str(warning.message) for warning in told] == [says]


def test_a_record_from_before_there_were_digests_is_one(tmp_path, recwarn):
    write_run(tmp_path / "old").with_name("environment.json").write_text('{"host": "h"}')
    assert len(load_results(tmp_path)) == 2
    assert not recwarn.list


@pytest.mark.parametrize("text", ["\r", '"'])
def test_damage_that_no_csv_reader_takes_is_named(tmp_path, text):
    bad = write_run(tmp_path / "bad")
    bad.write_bytes(bad.read_bytes().replace(b"uva", text.encode() + b"uva"))
    with pytest.warns(LeftOutWarning, match="left out"):
        assert load_results(tmp_path).empty


def test_copies_of_a_run_do_not_count(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, run_id="same")
    with pytest.warns(LeftOutWarning, match="2 rows are left out: copies of runs"):
        assert len(load_results(tmp_path)) == 2


def test_many_failures_make_no_warning(tmp_path, recwarn):
    failed = [{"run_id": f"f{number}", "status": "crash", "case": "full"} for number in range(5000)]
    good = [{"run_id": f"g{number}", "status": "ok", "case": "full", "steady": True} for number in range(5000)]
    write.write_run(tmp_path, {}, failed + good)
    assert len(load_results(tmp_path)) == 10_000
    assert not recwarn.list


def test_files_that_are_no_text_are_skipped(tmp_path):
    write_run(tmp_path / "bad").write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="left out"):
        assert load_results(tmp_path).empty


def test_empty_and_missing_folders(tmp_path):
    assert tuple(load_results(tmp_path).columns) == COLUMNS
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_results(tmp_path / "missing")


def test_half_a_file_never_counts(tmp_path, monkeypatch):
    write_run(tmp_path / "run", run_id="first")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write.write_run(tmp_path / "run", {}, [{"run_id": "second", "case": "full"}])
    assert set(load_results(tmp_path)["run_id"]) == {"first"}


def test_unknown_columns_are_a_defect(tmp_path):
    with pytest.raises(ValueError, match="wall_seconds"):
        write.write_run(tmp_path, {}, [{"run_id": "a", "wall_seconds": 1}])


def test_samples_load(tmp_path):
    write.write_run(tmp_path, {}, [], [{"run_id": "a", "case": "full", "iteration": 0, "order": 1, "wall_ms": 1 / 3}])
    frame = load_samples(tmp_path)
    assert tuple(frame.columns) == SAMPLE_COLUMNS
    assert frame["wall_ms"][0] == pytest.approx(1 / 3, rel=1e-8)
    assert frame["device_ms"].isna().all()


def test_a_sweep_gathers_its_runs_once(tmp_path):
    write_run(tmp_path / "0", run_id="0")
    write_run(tmp_path / "1", run_id="1", status="crash", wall_ms_median=None)
    for _ in range(2):
        assert len(write_sweep(tmp_path)) == 4
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run_id"] for row in rows] == ["0", "0", "1", "1"]
    assert tuple(rows[0]) == COLUMNS
    assert rows[3]["wall_ms_median"] == ""


def test_published_campaigns_do_not_mix_with_ones_own(tmp_path):
    write_run(tmp_path / "mine", run_id="mine")
    write_run(tmp_path / "reference/h200/0", run_id="published")
    assert set(load_results(tmp_path)["run_id"]) == {"mine"}
    for folder in ("reference", "reference/h200", "reference/h200/0/results.csv"):
        assert set(load_results(tmp_path / folder)["run_id"]) == {"published"}


def test_run_10_follows_run_9(tmp_path):
    for number in range(11):
        write_run(tmp_path / str(number), run_id=f"r{number}")
    assert load_results(tmp_path)["run_id"].tolist() == [f"r{number}" for number in range(11) for _ in range(2)]


def test_only_what_is_public_is_there():
    assert {"load_results", "load_samples"} <= set(engram_exp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_result'"):
        _ = engram_exp.load_result


def test_gzipped_samples_load_and_cut_ones_are_named(tmp_path):
    samples = [{"run_id": "a", "case": "full", "iteration": i, "order": i, "wall_ms": i + 1.0} for i in range(50)]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        write.write_run(tmp_path / name, {}, [], samples)
        packed = gzip.compress((tmp_path / name / "samples.csv").read_bytes())
        (tmp_path / name / "samples.csv").unlink()
        (tmp_path / name / "samples.csv.gz").write_bytes(packed if name == "whole" else packed[:-30])
    with pytest.warns(UserWarning, match=r"cut/samples\.csv\.gz is left out"):
        assert len(load_samples(tmp_path)) == 50


def test_a_table_of_medians(tmp_path):
    write_run(tmp_path / "0", run_id="0")
    frame = load_results(tmp_path)
    assert markdown(frame, ["strategy"]).splitlines()[0] == "| strategy | lookup | full |"
    full = frame[frame["case"] == "full"]
    assert markdown(full, ["strategy"], columns="batch_size").splitlines() == [
        "| strategy | 64 |", "|---|---:|", "| uva | 1.5 |",
    ]  # fmt: skip
