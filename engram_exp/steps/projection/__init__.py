"""Projection: embeddings -> keys, each RMS-normed, and one value; `step.py` has the contract."""
