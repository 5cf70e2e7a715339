"""The schema of what a run leaves behind: one table of columns, in the order of the file. Every list of columns that
stands elsewhere is a query on it. `python -m engram_exp.results.schema > docs/columns.md` prints it."""

from __future__ import annotations

from typing import NamedTuple

from engram_exp.vocabulary import (
    OK,
    REFUSED,
    SKIPPED,
    SUSPECT,
)

SCHEMA_VERSION = 12
RESULTS, SAMPLES, SWEEP, ENVIRONMENT = "results.csv", "samples.csv", "sweep.csv", "environment.json"

PUBLISHED = "reference"

SUCCESSES = (OK, SKIPPED)
HARMLESS = (*SUCCESSES, REFUSED, SUSPECT)  # behind which a process is as good a place to measure in as before

TEXT, CHOICE, NUMBER, TRUTH = "text", "choice", "number", "truth"

RECORD, STRATEGY, SUBJECT, STEP, ASKED, OPTIONS = "record", "strategy", "subject", "step", "asked", "options"
WAY, LABEL, FACT, MEASURED, MACHINE, CODE = "way", "label", "fact", "measured", "machine", "code"
ROLES = {
    RECORD: "which row it is, and what became of it",
    STRATEGY: "what is compared before all else",
    SUBJECT: "asked of the run; rows that differ here never stand in one figure",
    STEP: "asked of the run: the shape of a step",
    ASKED: "asked of the run beside these",
    OPTIONS: "asked of the run, or how it does it, where no other column tells",
    WAY: "how it is done; of several ways, its fastest stands for a strategy",
    LABEL: "told, but groupings go by what it stands for",
    FACT: "what follows from the model",
    MEASURED: "what came out, and how",
    MACHINE: "where; runs that differ here are compared only if that is asked for",
    CODE: "of which code",
}


class Column(NamedTuple):
    """One column of a file.

    name: of the column.
    kind: text; choice (text: the option chosen in the group of its name); number; truth (True or False). Any may be
        empty: unknown, or without meaning for the row.
    role: what analyses take it for, a key of `ROLES`.
    since: the first version of the schema that has it.
    unit: of its numbers.
    meaning: for `docs/columns.md`.
    key: of the configuration that it tells the value of, or what became of it, where that is not its name.
    """

    name: str
    kind: str
    role: str
    since: int
    unit: str
    meaning: str
    key: str = ""


TABLE = (
    Column("schema_version", NUMBER, RECORD, 1, "", "version of this table"),
    Column("run_id", TEXT, RECORD, 1, "", "unique among all runs"),
    Column("status", TEXT, RECORD, 1, "", "`ok`; `skipped`, `refused`, `mismatch`, `oom_host`, `oom_device`, `timeout` "
           "or `crash`: no time, and the reason; `suspect`: a time that beats what is possible, and never decides"),
    Column("error", TEXT, RECORD, 1, "", "the reason"),
    Column("strategy", CHOICE, STRATEGY, 1, "", "where the table lives and where each step runs; of a model's "
           "step also the layers that have one of their own: `uva strategies.14=kv_on_gpu`; of a file also its state, "
           "unless that is cold: `disk cache_state=warm`"),
    Column("model", CHOICE, SUBJECT, 1, "", "geometry, hash and tokenizer"),
    Column("layer", NUMBER, SUBJECT, 1, "", "which of the model's layers"),
    Column("dtype", CHOICE, SUBJECT, 1, "", "of rows, weights, keys and value"),
    Column("batch_size", NUMBER, STEP, 1, "sequences", "of a batch"),
    Column("seq_len", NUMBER, STEP, 1, "tokens", "of a sequence"),
    Column("tokens", CHOICE, SUBJECT, 1, "", "where token ids come from"),
    Column("hashing", CHOICE, WAY, 1, "", "component: token ids to row ids"),
    Column("lookup", CHOICE, WAY, 1, "", "component: row ids to embeddings"),
    Column("projection", CHOICE, WAY, 1, "", "component: embeddings to keys and value"),
    Column("hardware", CHOICE, LABEL, 1, "", "the option chosen; `device_name` and `threads` say what it came to"),
    Column("device", TEXT, LABEL, 1, "", "as PyTorch calls it; `cpu` where the CPU stands in", "hardware.device"),
    Column("experiment", CHOICE, LABEL, 1, "", "a preset"),
    Column("components", CHOICE, WAY, 1, "", "a bundle of components"),
    Column("table", CHOICE, WAY, 1, "", "component: the memory that rows live in"),
    Column("upload", CHOICE, WAY, 1, "", "component: across the link"),
    Column("shape", CHOICE, LABEL, 1, "", "a preset of batch_size, seq_len and history"),
    Column("history", TRUTH, STEP, 1, "", "whether sequences carry the ids before them", "tokens.history"),
    Column("threads", NUMBER, ASKED, 1, "threads", "of the CPU", "hardware.threads"),
    Column("seed", NUMBER, ASKED, 1, "", "of token ids, table, weights and order"),
    Column("batches", NUMBER, STEP, 1, "batches", "distinct ones that rotate through the iterations"),
    Column("table_scale", NUMBER, SUBJECT, 1, "", "share of the model's rows that the table has", "model.table_scale"),
    Column("true_rows", NUMBER, FACT, 1, "rows", "of the real layer"),
    Column("used_rows", NUMBER, FACT, 1, "rows", "of the table that was used"),
    Column("case", TEXT, RECORD, 1, "", "what was timed: a stage, `full` (up to keys and value on the device), `layer` "
           "(up to the hidden state), or, of a model's step, `fetch` (the rows of all layers, nothing beside them), "
           "`decoder` (it alone), `ready` (with the layers, their rows in place) or `step` (with the layers as the "
           "strategy has them)"),
    Column("iterations", NUMBER, MEASURED, 1, "samples", "taken"),
    Column("stop_reason", TEXT, MEASURED, 1, "", "what ended them: `iterations` or `budget`"),
    Column("steady", TRUTH, MEASURED, 1, "", "whether the samples neither fell nor rose (before schema 3: whether the "
           "warm-up settled); empty: unknown, they are too few to say"),
    Column("wall_ms_median", NUMBER, MEASURED, 1, "ms", "median time of an iteration"),
    Column("wall_ms_lo", NUMBER, MEASURED, 1, "ms", "lower bound of the median, 95 %, of this one process"),
    Column("wall_ms_hi", NUMBER, MEASURED, 1, "ms", "upper bound of the median, 95 %, of this one process"),
    Column("wall_ms_min", NUMBER, MEASURED, 1, "ms", "the shortest iteration"),
    Column("wall_ms_mean", NUMBER, MEASURED, 1, "ms", "mean"),
    Column("wall_ms_max", NUMBER, MEASURED, 1, "ms", "the longest iteration"),
    Column("wall_ms_p95", NUMBER, MEASURED, 1, "ms", "95th percentile, where the samples carry one"),
    Column("wall_ms_p99", NUMBER, MEASURED, 1, "ms", "99th percentile, where the samples carry one"),
    Column("device_ms_median", NUMBER, MEASURED, 1, "ms", "by the device's events"),
    Column("enqueue_ms_median", NUMBER, MEASURED, 1, "ms", "until the call returned"),
    Column("bytes_moved", NUMBER, MEASURED, 1, "bytes", "the fewest that the case needs: all that it reads and writes, "
           "on either side of the link, rows as often as they are asked for, or once if the lookup reads each once; of "
           "`full` and `layer`: the sum of their stages"),
    Column("gb_per_s", NUMBER, MEASURED, 1, "10^9 bytes/s", "these over the median"),
    Column("flops", NUMBER, MEASURED, 1, "FLOP", "the fewest that the case needs"),
    Column("tflop_per_s", NUMBER, MEASURED, 1, "10^12 FLOP/s", "these over the median"),
    Column("rows_per_s", NUMBER, MEASURED, 1, "rows/s", "row ids made or looked up, over the median"),
    Column("tokens_per_s", NUMBER, MEASURED, 1, "tokens/s", "of the batch, over the median"),
    Column("limit_ms", NUMBER, MEASURED, 1, "ms", "the shortest time that this machine allows"),
    Column("limit_by", TEXT, MEASURED, 1, "", "what sets it"),
    Column("efficiency", NUMBER, MEASURED, 1, "", "the limit over the median"),
    Column("table_bytes", NUMBER, MEASURED, 1, "bytes", "of the table"),
    Column("peak_device_bytes", NUMBER, MEASURED, 1, "bytes", "at the rows `full` and `layer` what these need, at "
           "the others at most in the run"),
    Column("peak_host_bytes", NUMBER, MEASURED, 1, "bytes", "likewise, in host memory"),
    Column("pinned_bytes", NUMBER, MEASURED, 1, "bytes", "likewise, of it pinned"),
    Column("unique_row_fraction", NUMBER, MEASURED, 1, "", "distinct rows among those that the first batch asks for"),
    Column("git_sha", TEXT, CODE, 1, "", "commit"),
    Column("git_dirty", TRUTH, CODE, 1, "", "whether files differed from it"),
    Column("torch_version", TEXT, MACHINE, 1, "", "of PyTorch"),
    Column("device_name", TEXT, MACHINE, 1, "", "of the device"),
    Column("driver", TEXT, MACHINE, 1, "", "of the device"),
    Column("cpu_name", TEXT, MACHINE, 1, "", "of the CPU"),
    Column("host", TEXT, MACHINE, 1, "", "name of the machine"),
    Column("started_at", TEXT, RECORD, 1, "UTC", "ISO 8601"),
    Column("schedule", CHOICE, WAY, 2, "", "how the stages of `full` and `layer` follow each other"),
    Column("chunk_tokens", NUMBER, WAY, 2, "tokens", "of a pipeline's chunk; empty: whole batches",
           "schedule.chunk_tokens"),
    Column("ring_depth", NUMBER, WAY, 2, "chunks", "that have buffers at a time", "schedule.ring_depth"),
    Column("capture", TEXT, WAY, 2, "", "`graph`: `full` and `layer` are each replayed as one"),
    Column("row_order", TEXT, WAY, 2, "", "of a kernel's reads: `as_asked`, `sorted` or `partitioned`", "lookup.order"),
    Column("rows_per_program", NUMBER, WAY, 2, "rows", "that a kernel's program reads at a time",
           "lookup.rows_per_program"),
    Column("warps", NUMBER, WAY, 2, "warps", "of a program", "lookup.warps"),
    Column("programs", NUMBER, WAY, 2, "programs", "of a launch, at most; empty beside rows_per_program: one for each "
           "block",
           "lookup.programs"),
    Column("layout", TEXT, WAY, 2, "", "where the scales of fp8 rows lie: `packed` or `split`", "dtype.layout"),
    Column("row_bytes", NUMBER, SUBJECT, 2, "bytes", "of a stored row"),
    Column("repeat", NUMBER, LABEL, 2, "", "which repetition of its configuration it is, from 0"),
    Column("huge_page_share", NUMBER, MEASURED, 2, "", "of the table's memory, in 2 MiB pages"),
    Column("options", TEXT, OPTIONS, 3, "", "every value that was set, by the command line, a sweep or a preset, "
           "and that no other column tells: `key=value key=value`, sorted by key; `~key`: it was removed"),
    Column("layers", NUMBER, FACT, 3, "layers", "of the model that have a table"),
    Column("preempted", NUMBER, MEASURED, 3, "switches", "involuntary context switches of the process in the samples"),
    Column("sm_clock_mhz_min", NUMBER, MEASURED, 3, "MHz", "lowest clock of the device's multiprocessors in the case"),
    Column("fusion", CHOICE, SUBJECT, 4, "", "component: keys, value and hidden state to hidden state; `none` (as "
           "before schema 4): the layer ends with keys, normed by the projection, and value"),
    Column("pause_ms", NUMBER, SUBJECT, 5, "ms", "slept before every call that was timed, as between two steps of a "
           "model; 0 (as before schema 5): calls followed each other at once"),
    Column("decoder", CHOICE, SUBJECT, 6, "", "the model's other layers, inside whose step the layers with tables are "
           "timed; `none` (as before schema 6): they are timed alone"),
    Column("engram_layers", TEXT, SUBJECT, 6, "", "of the decoder, from 0, that a layer with a table stands in front "
           "of: `1 14`", "decoder.engram_layers"),
    Column("ids", TEXT, SUBJECT, 6, "", "where a step's token ids are made: `host` or, sampled, `device`"),
    Column("prefetch", TEXT, WAY, 6, "", "where a step's rows are fetched: `beside` the decoder, or `inline` on its "
           "stream", "prefetch.where"),
    Column("lead", TEXT, WAY, 6, "", "during which step they are fetched: `this_step` or `previous_step`",
           "prefetch.lead"),
    Column("prefetch_streams", TEXT, WAY, 6, "", "beside the decoder: `one` of all layers, or `each` has one",
           "prefetch.streams"),
    Column("prefetch_priority", TEXT, WAY, 6, "", "of these streams: `low` or `high`", "prefetch.priority"),
    Column("exposed_ms_median", NUMBER, MEASURED, 6, "ms", "of `step`: what it takes longer than `ready`, with the "
           "rows of all layers in place before it begins; median of differences within a round"),
    Column("exposed_ms_lo", NUMBER, MEASURED, 6, "ms", "lower bound of that, 95 %, of this one process"),
    Column("exposed_ms_hi", NUMBER, MEASURED, 6, "ms", "upper bound of that, 95 %, of this one process"),
    Column("hidden_share", NUMBER, MEASURED, 6, "", "of `step`: what is not exposed of the median of `fetch`; above 1 "
           "or below 0 where noise or a disturbed decoder make it so"),
    Column("window_ms", TEXT, MEASURED, 6, "ms", "of `decoder`, `ready` and `step` (before schema 8: of "
           "`decoder` alone): from the step's begin until a layer with a table is reached, each: `1=0.21 14=2.9`"),
    Column("host_load", NUMBER, SUBJECT, 6, "processes", "other ones that kept CPUs busy while samples were taken; 0 "
           "(as before schema 6): none"),
    Column("link_load_gb_per_s", NUMBER, SUBJECT, 6, "10^9 bytes/s", "asked for of other copies through the link while "
           "samples were taken, both ways together; 0 (as before schema 6): there were none"),
    Column("link_load_block_kib", NUMBER, SUBJECT, 6, "KiB", "of each of these copies; 0 without them"),
    Column("link_load_reached_gb_per_s", NUMBER, MEASURED, 6, "10^9 bytes/s", "what these copies came to from before "
           "warming up until behind the last sample, both ways together; empty without them"),
    Column("by_auto", TEXT, LABEL, 6, "", "which of `row_order`, `rows_per_program` and `programs` tell what `auto` "
           "came to: groupings take them for `auto`, which may come to something else when it is measured again"),
    Column("lru_hit_rate", NUMBER, MEASURED, 6, "", "of an exact least-recently-used cache of 16 MiB of rows over the "
           "first 2^19 rows that the batches ask for, in their order: share of the second half that hit, behind the "
           "first"),
    Column("reuse_distance_rows", NUMBER, MEASURED, 6, "rows", "median, over those among the same 2^19 that were asked "
           "for before, of how many other rows were in between; empty: none was"),
    Column("cache_gb", NUMBER, WAY, 6, "10^9 bytes", "asked for of device memory for a cache of rows, or for a "
           "part of the table; empty: neither", "lookup.gb"),
    Column("cache_ways", NUMBER, WAY, 6, "rows", "of a set of that cache", "lookup.ways"),
    Column("cache_policy", TEXT, WAY, 6, "", "which rows lie there, or in host memory in front of a file: `lru`, those "
           "(of each set) that were asked for last; `lfu`, most often; `static`, those that a profile asks for most "
           "often; `heads`, the first of every hash column; `columns`, whole columns", "lookup.policy"),
    Column("cache_state", TEXT, WAY, 6, "", "how timed calls find it: `warm`, every batch has been called before; "
           "`steady`, those in front of it have; `cold`, empty", "lookup.state"),
    Column("cache_hit_rate", NUMBER, MEASURED, 6, "", "share of the row ids of the samples that were looked at whose "
           "rows lay there when their call began"),
    Column("link_bytes", NUMBER, MEASURED, 7, "bytes", "of rows that crossed the link in a call, in the mean of these "
           "samples, where the lookup counts them: one that was read twice counts twice"),
    Column("distinct_by_order", TEXT, MEASURED, 7, "", "`unique_row_fraction` of each n-gram order, as `2=0.31`"),
    Column("page_cache", TEXT, LABEL, 7, "", "what of the file of a table on a disk is in the host's memory when a "
           "timed call begins: `cold`, nothing; `warm`, all of it; `as_is`, what the calls before it left; empty: no "
           "case reads a file", "cache_state"),
    Column("queue_depth", NUMBER, WAY, 7, "reads", "of a file, under way at a time", "lookup.queue_depth"),
    Column("block_bytes", NUMBER, WAY, 7, "bytes", "of blocks read past the page cache", "lookup.block_bytes"),
    Column("disk", TEXT, LABEL, 7, "", "file system, device and model that the file of a table lies on"),
    Column("asked_bytes", NUMBER, MEASURED, 7, "bytes", "of the rows that a call asks for, as often as it does, "
           "without scales that the table keeps in memory"),
    Column("read_bytes", NUMBER, MEASURED, 7, "bytes", "that the kernel had read from disks in a call, behind the last "
           "sample; 0 also where it does not count those of this file system"),
    Column("reads", NUMBER, MEASURED, 7, "reads", "requests in such a call; of a mapped file, pages waited for"),
    Column("read_amplification", NUMBER, MEASURED, 7, "", "`read_bytes` over `asked_bytes`"),
    Column("hot_gb", NUMBER, WAY, 7, "10^9 bytes", "of host memory, for rows in front of a file", "lookup.hot_gb"),
    Column("hot_hit_rate", NUMBER, MEASURED, 7, "", "share of the row ids of such a call whose rows were there; with "
           "`lru`, of the samples that were looked at, a row that one call asks for twice hits the second time"),
    Column("resident_share", NUMBER, MEASURED, 7, "", "of the pages of the files of all tables of the case's run, in "
           "memory when such a call begins"),
    Column("warm_ms_median", NUMBER, MEASURED, 7, "ms", "of a cold case, if it reads through the page cache: the same "
           "calls once more, with their rows there; `suspect` if that is not less"),
    Column("ranks", NUMBER, SUBJECT, 7, "ranks", "processes, each with a GPU of its own, that ran it together; 1 (as "
           "before schema 7): one alone. Of several, a time is the slowest rank's; bytes, FLOP and limits are of one "
           "rank, memory of the first, `tokens_per_s` and `rows_per_s` of all"),
    Column("rank_batches", TEXT, SUBJECT, 7, "", "of several ranks: all ask for the `same` tokens, or each for its "
           "`own`"),
    Column("exchange", CHOICE, WAY, 7, "", "component: rows between ranks that share a table out; empty: they do not"),
    Column("split", TEXT, WAY, 7, "", "how they share it out: `contiguous` or `strided` hash columns, or `rows`",
           "table.split"),
    Column("waits_ms", TEXT, MEASURED, 8, "ms", "of `step`: that the decoder stands at such a layer until its rows "
           "are there, in a step by itself: `1=0.05 14=0`; what else is exposed is a decoder that is slowed"),
    Column("exposed_limit_ms", NUMBER, MEASURED, 8, "ms", "of `step`: the least of `exposed_ms_median` on this "
           "machine: what fetching the rows of the layers up to one takes at best, beyond the `window_ms` of that one "
           "in `ready`; 0: all of it could be hidden. A bound if the decoder is as quick in both"),
    Column("exposed_limit_by", TEXT, MEASURED, 8, "", "what sets the time of that fetching"),
    Column("worker", TEXT, LABEL, 9, "", "`process`: the run had one of its own; `shared`: one with others of its "
           "repetition; `inline`: that of the program"),
    Column("runs_before", NUMBER, MEASURED, 10, "runs", "that its process had made before"),
    Column("nodes", NUMBER, SUBJECT, 10, "hosts", "that ranks were on, as many on each; 1 (as before schema 10): one"),
    Column("graph_calls", NUMBER, SUBJECT, 11, "calls", "of the case that one CUDA graph replayed, on batches in turn: "
           "a sample is the graph's time over their number; 0 (as before schema 11): each call was launched by itself"),
    Column("steps_per_sample", NUMBER, SUBJECT, 12, "steps", "of a model, one behind the other, that a sample of "
           "`decoder`, `ready` or `step` is one of (before schema 12: as `options` had it, or 4); empty: no decoder"),
)  # fmt: skip
SAMPLE_TABLE = (
    Column("run_id", TEXT, RECORD, 1, "", "as in `results.csv`"),
    Column("case", TEXT, RECORD, 1, "", "as in `results.csv`"),
    Column("iteration", NUMBER, RECORD, 1, "", "of the case, from 0"),
    Column("order", NUMBER, RECORD, 1, "", "among all iterations of the run, from 0"),
    Column("wall_ms", NUMBER, MEASURED, 1, "ms", "until its work was done"),
    Column("device_ms", NUMBER, MEASURED, 1, "ms", "by the device's events"),
    Column("enqueue_ms", NUMBER, MEASURED, 1, "ms", "until the call returned"),
)


def of_role(*roles: str) -> tuple[str, ...]:
    """Names of the columns of any of these roles, in the order of the file."""
    return tuple(column.name for column in TABLE if column.role in roles)


def of_kind(*kinds: str) -> tuple[str, ...]:
    """Names of the columns of any of these kinds, in the order of the file."""
    return tuple(column.name for column in TABLE if column.kind in kinds)


COLUMNS_OF = {
    version: tuple(column.name for column in TABLE if column.since <= version)
    for version in range(1, SCHEMA_VERSION + 1)
}
COLUMNS = COLUMNS_OF[SCHEMA_VERSION]
SAMPLE_COLUMNS = tuple(column.name for column in SAMPLE_TABLE)
TEXT_COLUMNS, NUMBER_COLUMNS, TRUTH_COLUMNS = (
    frozenset(of_kind(*kinds)) for kinds in ((TEXT, CHOICE), (NUMBER,), (TRUTH,))
)
KEYS = {column.name: column.key or column.name for column in TABLE}  # of the configuration


if __name__ == "__main__":
    from engram_exp.results.document import document

    print(document(), end="")
