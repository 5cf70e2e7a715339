"""Two runs are one only if what they read is the same: settings, contents of files, code and machine."""

import subprocess
import sys

import pytest
from common import ROOT

from engram_exp.machine.sources import contributed_sources
from engram_exp.run import fingerprint as fingerprints
from engram_exp.run.fingerprint import fingerprint


def parts(config):
    return dict(zip(("settings", "files", "code", "machine"), fingerprint(config, {}, 0).split("-"), strict=True))


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("name", ["words.txt", "."], ids=["file", "folder"])
def test_text_that_changed_is_another_run(configure, tmp_path, name):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/words.txt").write_text("one two three")
    config = configure(f"tokens.path={tmp_path / 'text' / name}")
    before = parts(config)
    assert parts(config) == before
    (tmp_path / "text/words.txt").write_text("one two, three")
    assert changed(before, parts(config)) == {"files"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer.json", ".", "sentencepiece.model"])
def test_a_tokenizer_that_changed_is_another_run(configure, tmp_path, name):
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / ("tokenizer.json" if name == "." else name)
    file.write_text("{}")
    config = configure(f"model.tokenizer={tmp_path / 'mine' / name}")
    before = parts(config)
    file.write_text("[]")
    assert changed(before, parts(config)) == {"files"}


@pytest.mark.slow
def test_a_bundled_tokenizer_that_changed_is_another_run(configure, tmp_path, monkeypatch):
    before = parts(configure())
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(fingerprints, "tokenizer_file", lambda name: tmp_path / "tokenizer.json")
    assert changed(before, parts(configure())) == {"files"}


@pytest.mark.parametrize("target", ["mine.Hasher", "package.deep.mine.Hasher"])
def test_a_component_of_others_that_changed_is_another_run(configure, tmp_path, monkeypatch, target):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path.joinpath(*target.split(".")[:-2])
    folder.mkdir(parents=True, exist_ok=True)
    for above in (folder, folder.parent):
        if above != tmp_path and tmp_path in above.parents:
            (above / "__init__.py").write_text("raise RuntimeError('nothing may be imported here')\n")
    (folder / "mine.py").write_text("class Hasher: pass\n")
    config = configure(f"hashing._target_={target}")
    before = parts(config)
    (folder / "mine.py").write_text("class Hasher: ...\n")
    assert changed(before, parts(config)) == {"files"}


def test_the_innermost_module_is_the_source():
    assert [file.name for file in contributed_sources(["json.decoder.JSONDecoder"])] == ["decoder.py"]
    assert contributed_sources(["no_such_module.Class", "", "..x", "engram_exp.steps.hashing.numba.NumbaHasher"]) == []


@pytest.mark.slow
def test_a_fingerprint_needs_no_pytorch():
    script = """
import sys
from hydra import compose, initialize_config_dir
from engram_exp.config.schema import register_schema
from engram_exp.run.fingerprint import fingerprint
register_schema()
with initialize_config_dir(version_base="1.3", config_dir=sys.argv[1]):
    config = compose("config", ["tokens.path=README.md", "hashing._target_=torch.nn.Linear"])
print(fingerprint(config, {}, 0), "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "conf")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith(" False\n")
