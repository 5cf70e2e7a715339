"""Every command of the README runs, on a smaller scale."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from common import ONE_THREAD, ROOT, TINY

from engram_exp import load_results, load_samples
from engram_exp.analysis.compare import compare_values
from engram_exp.analysis.paper import paper_table
from engram_exp.analysis.replay import draw, steps_of
from engram_exp.machine.environment import gpus

README = (ROOT / "README.md").read_text()
SMALLER = {"4096": "16", "8192": "24", "64": "2", "100": "3"}  # lengths, batches and iterations


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = sorted(
    {
        line.partition("#")[0].rpartition("&& ")[2].strip()
        for block in code_blocks("bash")
        for line in block.splitlines()
        if "python run.py" in line
    }
)


def shrink(command: str) -> list[str]:
    command = command.replace("=engines", "=engines components=sglang_staged,tuned")
    command = command.replace("dense_8b", "tiny")
    arguments = shlex.split(re.sub(r"\b(\d+)\b(?=[,\s]|$)", lambda number: SMALLER.get(number[1], number[1]), command))
    chosen = {argument.partition("=")[0] for argument in arguments} | {"hardware", "tokens"}
    of_model = "model" in chosen or "experiment=engines" in arguments  # it has a geometry of its own
    tiny = [override for override in TINY if not (of_model and override.startswith("model."))]
    # A process for each run of a sweep is what tests/campaign are for.
    arguments.append("worker=inline" if chosen & {"-m", "experiment"} else "hardware.threads=1")
    return [*arguments, *(override for override in tiny if override.partition("=")[0] not in chosen)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_command(command, tmp_path, cache_dir):
    arguments = shrink(command)
    assert arguments[:2] == ["python", "run.py"]
    folders = [f"output_dir={tmp_path}", f"cache_dir={cache_dir}"]
    again = [argument for argument in arguments if argument.startswith("retry=")]  # of a campaign that has been run
    first = [argument for argument in arguments if argument not in again]
    for each in [first, arguments] if again else [arguments]:
        done = subprocess.run(
            [sys.executable, *each[1:], *folders],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, "TRITON_INTERPRET": "0"},  # what a user without a GPU has
            capture_output=True,
            text=True,
            timeout=280,
        )
        skips_all = "strategy=uva" in arguments and not gpus()
        assert done.returncode == (3 if skips_all else 0), done.stdout + done.stderr


def words(text: str) -> list[list[str]]:
    """What does not differ between machines and runs: the words of each line, not its numbers."""
    lines = (line for line in text.splitlines() if not line.startswith("  timed ") and "disturbed" not in line)
    return [re.findall(r"[A-Za-z_]{2,}", line) for line in lines if "not steady" not in line]


@pytest.mark.slow
@pytest.mark.skipif(bool(gpus()), reason="what is shown is of a machine without an accelerator")
def test_the_card_and_the_table_that_are_shown_are_what_quick_prints(tmp_path, cache_dir):
    folders = [f"output_dir={tmp_path}", f"cache_dir={cache_dir}"]
    command = [sys.executable, "run.py", "experiment=quick", "iterations=6", "budget_s=0.2", *folders]
    environment = {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    (page,) = tmp_path.glob("*/report/index.html")
    assert done.stdout.rstrip().endswith(str(page))
    first_run = done.stdout.split("run 1 of 4\n\n")[1].split("\n\nrun 2")[0]
    title, *rest = words(code_blocks("text")[0])
    assert title[:2] == ["kv_on_cpu", "run"]
    assert rest == words(first_run)[1:]


def analyses(name: str) -> list[str]:
    commands = [line for block in code_blocks("bash") for line in block.splitlines()]
    return [command for command in commands if f"-m engram_exp {name}" in command]


def analyse(command: str, *more: str) -> str:
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:], *more], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MIX = "uva strategies.14=kv_on_gpu"


@pytest.mark.parametrize(
    ("step", "size", "best", "shown"),
    [
        ("decode, 64 sequences", (64, 1), MIX, "{:.1f}; {:.1f}"),
        ("decode, 256 sequences", (256, 1), MIX, "{:.1f}; {:.1f}"),
        ("prompt, 8,192 tokens", (1, 8192), "kv_on_gpu", "{:.0f}; {:.0f}"),
    ],
)
def test_the_first_table_is_what_its_campaign_holds(step, size, best, shown):
    found = load_results(ROOT / "outputs/reference/dense_8b").query("batch_size == @size[0] and seq_len == @size[1]")
    medians = found.groupby(["strategy", "case", "device_name"])[["wall_ms_median", "exposed_ms_median"]].median()
    ready_ms = medians["wall_ms_median"][best, "ready"]
    exposed_ms = medians["exposed_ms_median"].xs("step", level="case")
    assert list(ready_ms.index) == ["NVIDIA H100 80GB HBM3", "NVIDIA H200"], "in the order of the table"
    of_all = exposed_ms[MIX].reindex(ready_ms.index)  # `-` stands for a card on which it was not measured
    shares = [f"{ms:.2f} ({ms / ready_ms[card] * 100:.1f} %)" if ms == ms else "-" for card, ms in of_all.items()]
    line = next(line for line in README.splitlines() if line.startswith(f"| {step}: "))
    _, of_step, of_mix, *others, _ = (cell.strip() for cell in line.split("|"))
    assert of_step == f"{step}: {shown.format(*ready_ms)}"
    assert of_mix == "; ".join(shares)
    assert others == ["; ".join(f"{ms:.2f}" for ms in exposed_ms[strategy]) for strategy in ("uva", "kv_on_gpu")]


def test_what_the_first_table_calls_decided_is_what_compare_says():
    decided = {}
    for card in ("h100", "h200"):
        steps = load_results(ROOT / "outputs/reference/dense_8b" / card / "decode")
        compared = compare_values(steps, "strategy", "uva", MIX).query("case == 'exposed'")
        decided[card] = compared.set_index("batch_size")["verdict"].to_dict()
    assert decided == {"h100": {64: "undecided", 256: "undecided"}, "h200": {64: "undecided", 256: "faster"}}


def test_the_first_table_says_how_many_runs_it_is_of():
    found = load_results(ROOT / "outputs/reference/dense_8b").query("case == 'step' and strategy != 'device'")
    runs = found[found["batch_size"] != 1].groupby(["device_name", "batch_size", "strategy"])["run_id"].nunique()
    assert [set(runs[card]) for card in ("NVIDIA H100 80GB HBM3", "NVIDIA H200")] == [{3}, {4}]
    assert set(found[found["batch_size"] == 1].groupby(["device_name", "seq_len", "strategy"])["run_id"].nunique()) == {
        1,
        2,
        3,
        4,
    }


def test_how_far_apart_runs_of_the_first_way_are_is_told():
    found = load_results(ROOT / "outputs/reference/dense_8b").query("case == 'step' and batch_size == 64")
    text, step_ms = " ".join(README.split()), found.set_index("strategy")["exposed_ms_median"]
    h100, h200 = (sorted(step_ms[found["device_name"].str.contains(card).to_numpy()][MIX]) for card in ("H100", "H200"))
    several = f"{h100[0]:.2f}, {h100[1]:.2f} and {h100[2]:.2f} on the H100, {h200[0]:.2f} to {h200[-1]:.2f} on the H200"
    assert f"of 64 sequences the first way took {several}" in text
    assert f"{several}, where tables in the GPU's own memory take {step_ms['device']:.2f}" in text


def test_what_two_gpus_change_is_what_their_campaign_holds():
    of_two = load_results(ROOT / "outputs/reference/h100_ranks/ranks").query("case == 'full' and batch_size == 8192")
    name = of_two["exchange"].mask(of_two["exchange"] == "", of_two["strategy"])
    ms = of_two.groupby(name)["wall_ms_median"].median()
    text = " ".join(README.split())
    assert f"{ms['peer'] / ms['replicated']:.2f} times as long as with all of it on each" in text
    longer = [ms[exchange] / ms["peer"] - 1 for exchange in ("all_gather", "all_reduce")]
    assert f"collectives: {min(longer) * 100:.0f} to {max(longer) * 100:.0f} % longer than that" in text
    assert f"{ms['host_shared'] / ms['replicated']:.2f} times with one table in host memory" in text
    assert f"{ms['host_shared'] / ms['uva']:.2f} times what one GPU takes alone" in text
    step = load_results(ROOT / "outputs/reference/h100_ranks/step").query("case == 'step'").set_index("strategy")
    exposed = step["exposed_ms_median"]
    peer = step[step["exchange"] == "peer"]["exposed_ms_median"].item()
    assert f"sequences takes {peer:.2f} and {exposed['host_shared']:.2f} ms longer (one run each)" in text


def test_what_engines_ways_cost_is_what_their_campaigns_hold():
    text = " ".join(README.split())
    steps = load_results(ROOT / "outputs/reference/h100_engines_step").query("case == 'step'")
    longer = steps.groupby(["components", "batch_size"])["exposed_ms_median"].median()
    ours, vllm, sglang = (
        f"{longer[of][64]:.2f} and {longer[of][256]:.2f}" for of in ("tuned_uva", "vllm_0_33", "sglang_0_5_23")
    )
    assert f"ours through the link takes {ours} longer, vLLM 0.33.0's {vllm}, SGLang 0.5.23's {sglang}." in text
    found = load_results(ROOT / "outputs/reference/h100_engines/text").query("case == 'full' and batch_size == 8192")
    ms = found.groupby("components")["wall_ms_median"].median().map("{:.1f}".format)
    engines = f"vLLM's {ms['vllm_0_33']}, SGLang's {ms['sglang_0_5_23']} (staged {ms['sglang_staged']})"
    assert f"{engines}, ours {ms['tuned_uva']} through the link, {ms['tuned']} by the CPU." in text


def test_what_the_paper_s_workload_loses_is_what_its_replay_says():
    folder = ROOT / "outputs/reference/h100_paper"
    steps = steps_of(draw(512, 100, 1024, seed=0), most_sequences=256, most_tokens=8192)
    table = paper_table(load_results(folder), load_samples(folder), list(steps))
    lost = table.set_index(["strategy", "decoder"])[["loss_percent", "paper_loss_percent"]]
    link, cpu = (lost.loc[strategy].loc[["dense_8b", "dense_4b"]] for strategy in ("uva", "kv_on_gpu"))
    told = [
        " and ".join(map("{:.1f}".format, each))
        for each in (link["paper_loss_percent"], *(of["loss_percent"] for of in (link, cpu)))
    ]
    text = " ".join(README.split())
    assert f"loses {told[0]} % of the throughput" in text
    assert f"{told[1]} % through the link, {told[2]} % by the CPU" in text
    page = (folder / "README.md").read_text()
    for row in table.itertuples():
        speeds = (row.tokens_per_s_without, row.tokens_per_s_in_place, row.tokens_per_s)
        percents = (row.loss_percent, row.exposed_percent, row.paper_loss_percent)
        cells = [row.decoder, row.strategy, *map("{:,.0f}".format, speeds), *map("{:.2f} %".format, percents)]
        assert f"| {' | '.join(cells)} |" in page


@pytest.mark.slow
def test_b_is_faster_than_a():
    (command,) = analyses("compare")
    assert re.search(r"│ full .* faster ", analyse(command))


@pytest.mark.slow
def test_what_is_shown_is_what_is_printed():
    (command,) = analyses("advise")
    printed, shown = analyse(command), code_blocks("text")[1]
    assert len(shown.splitlines()) <= 3
    assert all(line in printed.splitlines() for line in shown.splitlines())


@pytest.mark.parametrize("command", analyses("report"))
@pytest.mark.slow
def test_report(command, tmp_path):
    assert (tmp_path / "index.html").samefile(analyse(command, "--output", str(tmp_path)).strip())


def test_there_are_commands():
    assert len(COMMANDS) >= 7
    for name in ("compare", "advise", "report"):
        assert len(analyses(name)) == 1


def test_the_rooms_are_those_of_the_house():
    tree = README[README.index("```\nrun.py") :].split("```")[1]
    shown = set(re.findall(r"^  (\w+)/", tree, flags=re.MULTILINE))
    assert shown == {path.name for path in (ROOT / "engram_exp").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert len(README.splitlines()) <= 140, "for two readers, not for all"


@pytest.mark.slow
def test_a_way_of_one_s_own_is_two_files(tmp_path, cache_dir):
    (code,) = code_blocks("python")
    (tmp_path / "plain_lookup.py").write_text(code)
    (tmp_path / "conf/lookup").mkdir(parents=True)
    (target,) = re.findall(r"`(_target_:\s+[\w.]+)`", README)
    (tmp_path / "conf/lookup/plain.yaml").write_text(target.replace("\n", " "))
    (own,) = re.findall(r"`PYTHONPATH=/my (python run\.py [^`]*)`", README)
    arguments = shlex.split(own.replace("/my/", f"{tmp_path}/"))[1:]
    folders = [f"output_dir={tmp_path / 'out'}", f"cache_dir={cache_dir}"]
    done = subprocess.run(
        [sys.executable, *arguments, *TINY, *folders, "cases=[lookup,full]"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    frame = load_results(tmp_path / "out")
    assert set(frame["status"]) == {"ok"}
    assert set(frame["lookup"]) == {"plain"}
