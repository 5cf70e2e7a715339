"""Hashing: token ids and their history -> row ids.

Every hasher is built as `Hasher(plan, max_tokens, placement)` and called with ids int64 [B, L] and history int64
[B, N - 1]; it returns `plan.row_id_dtype` [B, L, H], equal to the last bit whatever the backend.
"""
