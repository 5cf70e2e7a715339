"""A gate and a short convolution: DeepSeek's demonstration, the paper's 27B and 40B models, Qwen3.8-Flash-Next."""

from __future__ import annotations

from engram_exp.steps.fusion.gated import GatedFusion


class GatedConvFusion(GatedFusion):
    """To every copy of the hidden state, gate * value is added and what the convolution makes of it. Called with what
    came before each sequence, too."""

    convolves = True
