"""The decoder beside which an Engram layer runs: what it takes is in `shape` and `shapes`, the rest computes."""
