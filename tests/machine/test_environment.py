"""What is known about a machine."""

from engram_exp.machine import environment


def test_a_stamp_identifies_code_and_machine(monkeypatch, tmp_path):
    stamp = environment.stamp()
    assert stamp["cpu_name"]
    assert stamp["torch_version"].startswith("2.")
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    assert environment.stamp.__wrapped__()["git_sha"] is None, "not installed from a repository"
