"""Where tests place tensors and kernels: the CPU, a GPU, or Triton's interpreter where there is none."""

import pytest
import torch

from engram_exp.machine.placement import Placement

CPU = Placement(torch.device("cpu"))
KERNEL_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.accelerator)]
