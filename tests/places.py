"""Where tests place tensors and kernels, and what of a run they build there."""

import pytest
import torch

from engram_exp.machine.placement import Placement
from engram_exp.measure.clock import Clock
from engram_exp.run.bench import Bench
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Plan
from engram_exp.run.verify import Verifier

CPU = Placement(torch.device("cpu"))
KERNEL_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # Triton's interpreter where there is none
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.accelerator)]


def parts_of(config) -> Parts:
    return Parts(Plan(config))


def bench_of(config) -> Bench:
    parts = parts_of(config)
    return Bench(parts, Clock(parts.plan.device), Verifier(parts, seed=0))


def built_stages(parts: Parts) -> dict:
    return {stage.name: parts.stage(stage) for stage in parts.plan.stages}
