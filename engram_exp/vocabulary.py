"""The words that the configuration, the code and the result files share. Nothing here imports PyTorch."""

from __future__ import annotations

HOST, DEVICE, LINK = "host", "device", "link"
STEPS = ("hashing", "lookup", "projection")  # a strategy places these; widening, if any, goes with the projection
UPLOAD_BEFORE = {"hashing": "up_ids", "lookup": "up_rows", "widening": "up_embed", "projection": "up_embed"}
UPLOAD_AT_END = "up_kv"
UPLOADS = ("up_ids", "up_rows", "up_embed", UPLOAD_AT_END)
FULL = "full"
CASES = ("hashing", "lookup", "widening", "projection", *UPLOADS, FULL)
AS_ASKED, SORTED, AUTO_ORDER = ROW_ORDERS = ("as_asked", "sorted", "auto")
ALIASES = {"hash": ("hashing", "lookup"), "compute": ("projection",)}  # the original's names
