"""Tables: memory that rows live in, and what fills it.

Every table is built as `Table(rows, row_values, dtype, seed, placement)` and has `storage` [rows, D] and
`contents(row_ids)`, the rows that a correct lookup returns, computed from the seed and the row ids alone.
"""
