"""Hashing: token ids and their history -> row ids; `step.py` has the contract."""
