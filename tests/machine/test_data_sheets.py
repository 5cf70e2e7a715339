"""Which data sheet belongs to which device."""

import pytest

from engram_exp.machine.data_sheets import DATA_SHEETS, data_sheet_of, most_memory_gb


@pytest.mark.parametrize(
    ("name", "gb", "option"),
    [
        ("NVIDIA A100-SXM4-80GB", 85, "a100"), ("NVIDIA B200", 192, "b200"), ("NVIDIA GH200 480GB", 102, "gh200"),
        ("NVIDIA H100 80GB HBM3", 85, "h100"), ("NVIDIA H200", 151, "h200"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 102, "rtx_pro_6000"),
    ],
)  # fmt: skip
def test_a_device_has_the_data_sheet_of_its_name(name, gb, option):
    assert data_sheet_of(name, gb * 10**9) is DATA_SHEETS[option]


@pytest.mark.parametrize(
    ("name", "gb"),
    [
        ("NVIDIA A100-SXM4-40GB", 42), ("NVIDIA A100 80GB PCIe", 85), ("NVIDIA A100X", 85), ("NVIDIA A1000", 85),
        ("NVIDIA H100 PCIe", 85), ("NVIDIA H100 NVL", 100), ("NVIDIA H200 NVL", 151), ("NVIDIA H20", 102),
        ("NVIDIA H20", 151), ("NVIDIA GH200 144G HBM3e", 153), ("NVIDIA GB200", 192), ("NVIDIA H800", 85),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 102),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 102), ("NVIDIA RTX 6000 Ada Generation", 51),
        ("INTEL(R) XEON(R) PLATINUM 8580", 135), ("", 85),
    ],
)  # fmt: skip
def test_a_variant_with_other_memory_link_or_power_has_none(name, gb):
    assert data_sheet_of(name, gb * 10**9) is None


@pytest.mark.parametrize(
    ("name", "most_gib"),
    [
        ("NVIDIA H100 80GB HBM3", 80), ("NVIDIA H200", 141), ("NVIDIA A100 80GB PCIe", 80), ("NVIDIA B200", 180),
        ("NVIDIA A100-SXM4-40GB", 80), ("NVIDIA GH200 480GB", 480), ("NVIDIA GH200 144G HBM3e", 144),
        ("NVIDIA H20", None), ("NVIDIA RTX A6000", None), ("", None),
    ],
)  # fmt: skip
def test_a_name_tells_the_most_memory_that_a_device_may_have(name, most_gib):
    """Of several numbers the largest: whoever says that something does not fit must be right."""
    assert most_memory_gb(name) == (most_gib and most_gib * 2**30 / 1e9)
