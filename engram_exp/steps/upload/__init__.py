"""Upload: a value crosses the link to the device; `step.py` has the contract."""
