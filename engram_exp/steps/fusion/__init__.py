"""Fusion: keys, value and the model's hidden state -> the hidden state behind the layer; `step.py` has the contract."""
