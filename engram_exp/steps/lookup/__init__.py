"""Lookup: row ids -> rows as they are stored; `step.py` has the contract."""
