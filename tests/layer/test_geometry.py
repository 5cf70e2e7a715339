import numpy as np
import pytest
from common import demo_geometry, golden

from engram_exp.config.derived import geometry_of
from engram_exp.errors import ConfigError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layer", "rows", "prefix"),
    [
        ("demo", 1, 10_344_164, "demo"),
        ("demo", 15, 10_348_242, "demo"),
        ("deepseek_v41_flash", 1, 384_006_168, "v41"),
        ("deepseek_v41_flash", 14, 384_016_682, "v41"),
    ],
)
def test_rows_and_primes_of_real_models(configure, model, layer, rows, prefix):
    geometry = geometry_of(configure(f"model={model}", f"layer={layer}"))
    assert geometry.rows == geometry.true_rows == rows
    assert np.array_equal(geometry.head_rows, golden("hash")[f"{prefix}_layer{layer}_primes"])


def test_published_figures_of_v41(configure):
    geometry = geometry_of(configure("model=deepseek_v41_flash"))
    assert geometry.columns == 24
    assert geometry.bytes_of("kv", 1, 1) == 51_200
    assert geometry.bytes_of("embeddings", 1, 1) == 2 * 6144
    assert (geometry.embedding_width, geometry.kv_width) == (6144, 25_600)
    assert geometry.row_id_bytes == 4


def test_values_have_the_sizes_that_the_original_moved():
    geometry = demo_geometry()
    assert geometry.bytes_of("rows", 64 * 4096, 64) == geometry.bytes_of("embeddings", 64 * 4096, 64) == 512 * 2**20
    assert geometry.bytes_of("kv", 64 * 4096, 64) == 64 * 4096 * 5 * 1024 * 2
    assert geometry.bytes_of("row_ids", 10, 2) == 10 * 16 * 4
    assert geometry.bytes_of("token_ids", 64, 64) == 64 * 3 * 8


def test_published_figures_of_the_gate(configure):
    geometry = geometry_of(configure("model=deepseek_v41_flash"))
    assert geometry.conv_kernel is None
    kv, hidden = (geometry.bytes_of(value, 8192, 1) for value in ("kv", "hidden"))
    assert kv + 2 * hidden == pytest.approx(1.09e9, rel=0.01)
    demo = geometry_of(configure("model=demo"))
    assert (geometry.conv_reach, demo.conv_reach) == (0, 9)
    assert (demo.conv_kernel, demo.conv_dilation) == (4, max(demo.orders))


def test_table_scale_shrinks_the_table_and_keeps_the_true_rows():
    geometry = demo_geometry(table_scale=0.01)
    assert geometry.true_rows == 10_344_164
    assert geometry.rows == pytest.approx(103_441, rel=0.02)  # primes are sparse
    assert len(set(geometry.head_rows)) == geometry.columns


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"layer": 2}, "layer"),
        ({"heads": 0}, "model.heads"),
        ({"orders": (3, 2)}, "model.orders"),
        ({"vocab_per_order": (5,)}, "model.vocab_per_order"),
        ({"table_scale": 0.0}, "model.table_scale"),
        ({"table_scale": 1.1}, "model.table_scale"),
        ({"hc_mult": 0}, "model.hc_mult"),
        ({"rows_multiple_of": 0}, "model.rows_multiple_of"),
        ({"norm_eps": 0.0}, "model.norm_eps"),
        ({"conv_kernel": 1, "conv_dilation": 3}, "model.conv_kernel"),
        ({"conv_kernel": 4}, "model.conv_dilation"),
        ({"conv_dilation": 3}, "model.conv_kernel"),
        ({"conv_kernel": 4, "conv_dilation": 0}, "model.conv_dilation"),
        ({"layers": (1, 1)}, "model.layers"),
    ],
)
def test_impossible_numbers_are_refused_by_key(change, key):
    with pytest.raises(ConfigError, match=rf"^{key}="):
        demo_geometry(**change)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_tables_are_filled_up_and_hashes_reach_the_same_rows(scale):
    plain, filled = demo_geometry(table_scale=scale), demo_geometry(table_scale=scale, rows_multiple_of=1000)
    assert filled.head_rows == plain.head_rows
    assert filled.rows % 1000 == filled.true_rows % 1000 == 0
    assert 0 < filled.rows - plain.rows < 1000


def test_fp8_rows_have_their_scales():
    assert demo_geometry(values_per_scale=32).row_bytes == 66
    assert demo_geometry(row_values=40, values_per_scale=32).row_bytes == 42, "a scale of fewer values is one, too"
    assert demo_geometry(row_values=160, one_scale=0.01).row_bytes == 160, "the table's scale is in no row"


def test_row_ids_widen_as_soon_as_32_bits_are_too_few():
    for rows, size in ((2**31, 4), (2**31 + 1, 8)):
        geometry = demo_geometry(layers=(1,), prime_source=lambda *_, rows=rows: [[rows - 15, *[1] * 15]])
        assert (geometry.rows, geometry.row_id_bytes) == (rows, size)
