"""Compiled code is kept between runs; damaged code is never run, and a full disk costs time, not the run."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp import load_results
from engram_exp.run.compiled import compiled_code

FILES = ("steps_1/hash-9.py311.nbi", "steps_1/hash-9.py311.1.nbc", "measure_2/read-9.py311.nbi")


def build(folder):
    with compiled_code(folder) as place:
        for name in FILES:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(f"code of {name}".encode())


def left_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.nb?"))


def test_sound_code_stays(tmp_path, caplog):
    for _ in range(2):
        build(tmp_path / "numba")
    with compiled_code(tmp_path / "numba") as place:
        assert left_in(place) == sorted(FILES)
    assert not caplog.text


@pytest.mark.slow
@given(st.sampled_from(FILES), st.integers(0, 20), st.integers(0, 255))
def test_whatever_byte_is_damaged_nothing_of_it_is_run(tmp_path_factory, name, place, byte):
    folder = tmp_path_factory.getbasetemp() / "numba"
    build(folder)
    content = bytearray((folder / name).read_bytes())
    is_same, content[place] = content[place] == byte, byte
    (folder / name).write_bytes(content)
    with compiled_code(folder):
        assert left_in(folder) == (sorted(FILES) if is_same else [])


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_the_message_names_what_is_damaged(tmp_path, caplog, damage):
    build(tmp_path / "numba")
    damage(tmp_path / "numba" / FILES[0])
    with compiled_code(tmp_path / "numba") as place:
        assert left_in(place) == []
    assert f"the compiled code in {tmp_path / 'numba'} is damaged ({FILES[0]}); it is deleted and built" in caplog.text


def test_what_a_killed_worker_left_is_not_trusted(tmp_path, caplog):
    build(tmp_path / "numba")
    (tmp_path / "numba/half.1.nbc").write_bytes(b"?")
    with compiled_code(tmp_path / "numba") as place:
        assert left_in(place) == sorted(FILES)
    assert not caplog.text


def test_a_disk_without_room_is_not_used(tmp_path, caplog):
    folder = tmp_path / "numba"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with compiled_code(folder) as place:
            assert place != folder
            (place / "a.1.nbc").write_bytes(bytes(2**20))
        assert not place.exists()
        assert "numba cannot be used, code is compiled again for this run: [Errno 28] No space" in caplog.text
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_damaged_code_and_a_cache_that_cannot_be_written_fail_no_run(call, tmp_path, caplog):
    cache = tmp_path / "cache"
    asked = ("cases=[hashing]", f"cache_dir={cache}", "resume=false")
    assert call(*asked).returncode == 0
    files = [*cache.rglob("*.nbi"), *cache.rglob("*.nbc")]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    done = call(*asked)
    assert done.returncode == 0, done.stdout
    assert "numba is damaged (" in done.stderr
    assert all(len(file.read_bytes()) > 40 for file in files), "it was built again"
    files[0].write_bytes(b"damaged")
    done = call(*asked, "worker=inline")
    assert done.returncode == 0, done.stdout
    assert "numba is damaged (" in done.stderr
    with compiled_code(files[0].parents[1]):
        assert "damaged" not in caplog.text
    (tmp_path / "file").write_text("no folder")
    done = call("cases=[hashing]", f"cache_dir={tmp_path / 'file/cache'}")
    assert done.returncode == 0, done.stdout
    assert "cannot be used, code is compiled again for this run: " in done.stderr
    assert "cannot be kept for the next run" in done.stderr
    assert set(load_results(tmp_path)["status"]) == {"ok"}
