"""Which rows a workload asks for again: hit rates over the size of a cache, distinct rows over the tokens of a step."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from engram_exp.commands.arguments import at_least
from engram_exp.config.checks import check
from engram_exp.config.schema import register_schema
from engram_exp.layer.conversations import MESSAGES
from engram_exp.layer.corpus import JSONL, records
from engram_exp.layer.profile import write_profile
from engram_exp.machine.files import write_text
from engram_exp.vocabulary import ALL_ORDERS, COLD, LRU, STATIC, WARM

CONF = Path(__file__).parents[2] / "conf"
MOST_TOKENS = 1_000_000
HITS = ["cache_gb", "policy", "sequences", "seq_len", "hit_rate"]  # of a cache that was measured
BYTES_OF_TOKEN = 8  # of text, at most in the mean: so many are read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m engram_exp reuse` takes."""
    parser.add_argument(
        "tokens",
        metavar="TOKENS",
        help="a text, a folder, conversations (.jsonl), ids (.npy), or an option of conf/tokens",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as run.py takes them: model=, dtype=, layer="
    )
    parser.add_argument(
        "--most", type=at_least(2, int), default=MOST_TOKENS, metavar="N", help="tokens, at most (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrency", type=at_least(1, int), action="append", metavar="N",
        help="streams of equal length that take a token each in turn; several times: each of them (default: as many as "
        "the source has, else 1)",
    )  # fmt: skip
    parser.add_argument(
        "--points", metavar="FOLDER", help="of campaigns: what their runs on such tokens and such a table measured"
    )
    text = "gets how often each row was asked for (.npz), for lookup.policy=static and lookup.profile_path"
    parser.add_argument("--profile", type=Path, metavar="FILE", help=text)
    parser.add_argument(
        "--output", metavar="DIR", help="gets cache.csv, steps.csv and, with the extra `report`, reuse.svg"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the curves of a workload, and write them if asked to.

    Raises:
        ValueError: tokens, a key or a number that will not do.
        OSError: the folder, or the file of the profile, cannot be written.
    """
    from engram_exp.reuse.curves import curves  # no other command needs PyTorch, which is slow to import
    from engram_exp.run.workload import Workload

    config = _config(arguments.tokens, arguments.overrides, arguments.most)
    workload, console = Workload(config), Console()
    points = _points(arguments.points, config, workload.geometry.rows) if arguments.points else {}
    caches, steps = list[pd.DataFrame](), list[pd.DataFrame]()
    for streams in arguments.concurrency or [workload.concurrency]:
        row_ids = workload.row_ids(arguments.most, streams)
        if arguments.profile and not caches:
            write_profile(arguments.profile, workload.parts.hash.plan, row_ids)
        began = time.perf_counter()
        cache, step = curves(row_ids, workload.shape)
        passed_s = time.perf_counter() - began
        tokens, columns = row_ids.shape
        console.print(_title(arguments, config, streams, tokens, columns, workload.geometry.row_bytes))
        console.print(_cache_table(cache), _step_table(step))
        console.print(
            f"{row_ids.size:,} uses in {passed_s:.2f} s: {row_ids.size / passed_s / 1e6:.3g} million a second"
        )
        told = {"tokens": arguments.tokens, "overrides": " ".join(arguments.overrides), "concurrency": streams}
        caches.append(cache.assign(**told))
        steps.append(step.assign(**told))
    for table in map(_points_table, points.values()):
        console.print(table)
    if arguments.output:
        _write(Path(arguments.output), pd.concat(caches), pd.concat(steps), points)


def _config(tokens: str, overrides: list[str], most_tokens: int) -> DictConfig:
    """The configuration of a run on these tokens."""
    if not CONF.is_dir():
        raise ValueError(f"{CONF} is not there: the package must be installed from its checkout (pip install -e .)")
    path = Path(tokens).expanduser()
    option = _option_of(path) if path.exists() else tokens
    options = sorted(file.stem for file in (CONF / "tokens").glob("*.yaml"))
    if option not in options:
        raise ValueError(f"{tokens}: no such file or folder, and none of the options {', '.join(options)}")
    register_schema()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = compose("config", [f"tokens={option}", *overrides])
    except HydraException as error:
        raise ValueError(str(error)) from error
    if path.exists():
        config.tokens.path = str(path)
    if "max_mb" in config.tokens and not any(text.startswith("tokens.max_mb=") for text in overrides):
        config.tokens.max_mb = most_tokens * BYTES_OF_TOKEN / 1e6
    check(config, here=False)
    return config


def _option_of(path: Path) -> str:
    """The option of `tokens` that reads a file or a folder."""
    from engram_exp.layer.tokens.ids import ARRAYS, load_arrays  # with PyTorch

    if path.suffix in ARRAYS:
        return "ids" if load_arrays(str(path))["ids"].ndim == 2 else "trace"
    if path.suffix == JSONL and path.is_file():
        _, first = next(records(path), (0, None))
        return "trace" if isinstance(first, dict) and MESSAGES in first else "text"
    return "text"


def _title(
    arguments: argparse.Namespace, config: DictConfig, streams: int, tokens: int, columns: int, row_bytes: int
) -> str:
    said = " ".join([arguments.tokens, *arguments.overrides])
    in_streams = f"{tokens:,} tokens in {streams} stream{'s' * (streams > 1)}"
    return f"{said}, layer {config.layer}: {in_streams}, {columns} rows of {row_bytes} bytes each"


def _cache_table(cache: pd.DataFrame) -> Table:
    """A line for each size: hit rates of the policies and, of the first, of each n-gram order."""
    table = Table("cache GB", "lru, warm", "lru, cold", "static, warm")
    asked = [(LRU, WARM, ALL_ORDERS), (LRU, COLD, ALL_ORDERS), (STATIC, WARM, ALL_ORDERS)]
    for order in cache["order"].unique():
        if order != ALL_ORDERS:
            table.add_column(f"order {order}")
            asked.append((LRU, WARM, order))
    rates = cache.pivot(index="cache_gb", columns=["policy", "state", "order"], values="hit_rate")[asked]
    for cache_gb, row in rates.iterrows():
        table.add_row(f"{cache_gb:.3g}", *(f"{rate:.3f}" for rate in row))
    return table


def _step_table(steps: pd.DataFrame) -> Table:
    """A line for each size of a step: the share of distinct rows, of each n-gram order."""
    shares = steps.pivot(index="step_tokens", columns="order", values="distinct_share")
    orders = [ALL_ORDERS, *(order for order in shares if order != ALL_ORDERS)]
    table = Table(
        "tokens of a step", *(f"distinct, {'all' if order == ALL_ORDERS else f'order {order}'}" for order in orders)
    )
    for step, row in shares[orders].iterrows():
        table.add_row(f"{step:,}", *(f"{share:.3f}" for share in row))
    return table


def _points(folder: str, config: DictConfig, rows: int) -> dict[str, pd.DataFrame]:
    """What runs measured: `points` of distinct rows, and `hits` of their caches, if they had any."""
    from engram_exp.reuse.points import measured_points

    option = config.tokens._target_.split(".")[-2]
    steps, hits = measured_points(folder, option, rows, has_path=config.tokens.get("path") is not None)
    return {"points": steps, "hits": hits} if len(hits) else {"points": steps}


def _points_table(points: pd.DataFrame) -> Table:
    """A line for each shape of a step that was measured: the share of distinct rows, or of those in a cache."""
    if "hit_rate" in points:
        table = Table("cache GB", "policy", "tokens of a step", "sequences", "hit rate, measured")
        for gb, policy, sequences, seq_len, rate in points[HITS].to_numpy():
            table.add_row(f"{gb:.3g}", policy, f"{sequences * seq_len:,.0f}", f"{sequences:,.0f}", f"{rate:.3f}")
        return table
    table = Table("tokens of a step", "sequences", "distinct, measured")
    for point in points.itertuples():
        table.add_row(f"{point.step_tokens:,}", f"{point.sequences:,}", f"{point.distinct_share:.3f}")
    return table


def _write(folder: Path, cache: pd.DataFrame, steps: pd.DataFrame, points: dict[str, pd.DataFrame]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in {"cache": cache, "steps": steps, **points}.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    try:
        from engram_exp.pages.reuse import reuse_figure
    except ModuleNotFoundError as error:  # of the extra: a server does without, and the tables hold all that it shows
        text = f"{folder} has no reuse.svg: {error.name} is not installed (pip install -e '.[report]')"
        warnings.warn(text, stacklevel=2)
        print(folder)
        return
    write_text(folder / "reuse.svg", reuse_figure(cache, steps, **points))
    print(folder / "reuse.svg")
