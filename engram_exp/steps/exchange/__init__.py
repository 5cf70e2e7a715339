"""Exchange: rows of a table that ranks share out among them reach whoever asks; `step.py` has the contract."""
