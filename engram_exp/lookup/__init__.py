"""Lookup: row ids -> embeddings.

Every lookup is built as `Lookup(table, max_tokens, columns, placement)` and called with row ids [B, L, H]; it returns
the rows side by side, [T, H * D], in the compute dtype and exact to the bit.
"""
