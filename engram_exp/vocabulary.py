"""The words that the configuration, the code and the result files share. Nothing here imports PyTorch.

A layer turns values into values, each step one into the next. Where a value is needed in another place than where it
was made, an upload of it stands between the two.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HOST, DEVICE, LINK = "host", "device", "link"
DISK = "disk"  # where a table may live, and no step runs

TOKEN_IDS, ROW_IDS, ROWS, EMBEDDINGS, KV = "token_ids", "row_ids", "rows", "embeddings", "kv"
HIDDEN = "hidden"
PARTS = "parts"  # rows whose values and scales lie apart
TENSORS_OF = {  # values of more than one tensor
    TOKEN_IDS: ("token_ids", "history"), PARTS: ("values", "scales"), KV: ("keys", "value"),
}  # fmt: skip
BY_SEQUENCE = (TOKEN_IDS, ROW_IDS)  # tensors [B, L, ...]; those of other values are [T, ...]


class Step(NamedTuple):
    """A step of the layer: its name in YAML, cases and CSV, and the values that it needs and makes."""

    name: str
    needs: str
    makes: str


HASHING = Step("hashing", TOKEN_IDS, ROW_IDS)
LOOKUP = Step("lookup", ROW_IDS, ROWS)  # or what `looked_up` of a plan says: embeddings or parts
WIDENING = Step("widening", ROWS, EMBEDDINGS)  # left out where the lookup makes what the projection needs
PROJECTION = Step("projection", EMBEDDINGS, KV)
FUSION = Step("fusion", KV, HIDDEN)  # left out unless a fusion is chosen; on the device, as the hidden state is
STEPS = (HASHING, LOOKUP, WIDENING, PROJECTION, FUSION)
PLACED_WITH = {WIDENING.name: PROJECTION.name}  # steps that a strategy does not place by themselves
PLACED = tuple(step.name for step in STEPS if step != FUSION and step.name not in PLACED_WITH)

UPLOAD_OF = {
    TOKEN_IDS: "up_ids", ROW_IDS: "up_rows", ROWS: "up_embed", PARTS: "up_embed", EMBEDDINGS: "up_embed", KV: "up_kv",
}  # fmt: skip
UPLOADS = tuple(dict.fromkeys(UPLOAD_OF.values()))
FULL, LAYER = "full", "layer"
WHOLES = {FULL: KV, LAYER: HIDDEN}  # cases of several stages: all up to the one that delivers this on the device
# Cases of a model's step: its decoder alone; with the layers, their rows in place; with the layers as the strategy has
# them; and the rows of all layers, with nothing beside them.
DECODER, READY, IN_STEP, FETCH = "decoder", "ready", "step", "fetch"
IN_SERIES = (DECODER, READY, IN_STEP)  # of which a sample is of several that follow each other
OF_A_STEP = (FETCH, *IN_SERIES)
CASES = (*(step.name for step in STEPS), *UPLOADS, *WHOLES, *OF_A_STEP)
ALIASES = {"hash": (HASHING.name, LOOKUP.name), "compute": (PROJECTION.name,)}  # the original's names

SHARED = "shared"  # a worker: by several runs
BESIDE, INLINE = "beside", "inline"  # the decoder: where rows are fetched
ONE, EACH = "one", "each"  # streams that they are fetched on: of all layers, or of each
LOW, HIGH = "low", "high"  # priorities of these
THIS_STEP, PREVIOUS_STEP = "this_step", "previous_step"  # during which rows are fetched

AUTO: Final = "auto"
AS_ASKED, SORTED, PARTITIONED, _ = ROW_ORDERS = ("as_asked", "sorted", "partitioned", AUTO)
MULTIPROCESSORS = "multiprocessors"  # as many programs as the device has ...
HALF_BESIDE = "half_beside"  # ... or, beside a decoder, half as many

SAME, OWN = "same", "own"  # batches of the ranks of a run
PEERS, PEER_ROWS = "peers", "peer rows"  # resources: bytes that arrive from other ranks, and rows read in their memory

LRU, LFU, STATIC = "lru", "lfu", "static"  # what a cache of rows keeps
HEADS = "heads"  # of all hash columns: which rows of a table lie in device memory
COLD, WARM, STEADY = "cold", "warm", "steady"
AS_IS = "as_is"
ALL_ORDERS = "all"

OK, SUSPECT, SKIPPED, REFUSED = "ok", "suspect", "skipped", "refused"
MISMATCH, OOM_HOST, OOM_DEVICE, TIMEOUT, CRASH = "mismatch", "oom_host", "oom_device", "timeout", "crash"
