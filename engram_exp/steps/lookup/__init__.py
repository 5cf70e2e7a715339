"""Lookup: row ids -> embeddings, as they are stored.

Every lookup is built as `Lookup(table, max_tokens, columns, placement)` and called with row ids [B, L, H]; it returns
the stored rows side by side, [T, H * width], exact to the bit: embeddings in the compute dtype, or bytes of fp8 values
and scales that are widened behind it.
"""
