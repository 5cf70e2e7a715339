"""The schema of what a run leaves behind."""

from __future__ import annotations

SCHEMA_VERSION = 2
RESULTS, SAMPLES, SWEEP, ENVIRONMENT = "results.csv", "samples.csv", "sweep.csv", "environment.json"

PUBLISHED = "reference"

OK, SKIPPED, REFUSED = "ok", "skipped", "refused"
MISMATCH, OOM_HOST, OOM_DEVICE, TIMEOUT, CRASH = "mismatch", "oom_host", "oom_device", "timeout", "crash"
SUCCESSES = (OK, SKIPPED)

IDENTITY_COLUMNS = ("schema_version", "run_id", "status", "error")
CONFIG_COLUMNS = (
    "strategy", "model", "layer", "dtype", "batch_size", "seq_len", "tokens", "hashing", "lookup", "projection",
    "hardware", "device", "experiment", "components", "table", "upload", "shape", "history", "threads", "seed",
    "batches", "table_scale", "true_rows", "used_rows",
)  # fmt: skip
CASE_COLUMNS = (
    "case", "iterations", "stop_reason", "steady",
    "wall_ms_median", "wall_ms_lo", "wall_ms_hi", "wall_ms_min", "wall_ms_mean", "wall_ms_max", "wall_ms_p95",
    "wall_ms_p99", "device_ms_median", "enqueue_ms_median",
    "bytes_moved", "gb_per_s", "flops", "tflop_per_s", "rows_per_s", "tokens_per_s",
    "limit_ms", "limit_by", "efficiency",
    "table_bytes", "peak_device_bytes", "peak_host_bytes", "pinned_bytes", "unique_row_fraction",
)  # fmt: skip
STAMP_COLUMNS = (
    "git_sha", "git_dirty", "torch_version", "device_name", "driver", "cpu_name", "host", "started_at",
)  # fmt: skip
COLUMNS_OF_VERSION_1 = (*IDENTITY_COLUMNS, *CONFIG_COLUMNS, *CASE_COLUMNS, *STAMP_COLUMNS)
SCHEDULE_COLUMNS = (
    "schedule", "chunk_tokens", "ring_depth", "capture", "row_order", "rows_per_program", "warps", "programs", "layout",
    "row_bytes", "repeat",
)  # fmt: skip
COLUMNS = (*COLUMNS_OF_VERSION_1, *SCHEDULE_COLUMNS, "huge_page_share")
COLUMNS_OF = {1: COLUMNS_OF_VERSION_1, 2: COLUMNS}
SAMPLE_COLUMNS = ("run_id", "case", "iteration", "order", "wall_ms", "device_ms", "enqueue_ms")
TEXT_COLUMNS = {
    "run_id", "status", "error", "strategy", "model", "dtype", "tokens", "hashing", "lookup", "projection", "hardware",
    "device", "experiment", "components", "table", "upload", "shape", "case", "stop_reason", "limit_by", "git_sha",
    "torch_version", "device_name", "driver", "cpu_name", "host", "started_at", "schedule", "capture", "row_order",
    "layout",
}  # fmt: skip
TRUTH_COLUMNS = {"history", "steady", "git_dirty"}
NUMBER_COLUMNS = set(COLUMNS) - TEXT_COLUMNS - TRUTH_COLUMNS
