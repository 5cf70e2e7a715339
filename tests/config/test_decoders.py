"""What a decoder keeps of a token, and a model has of columns, follow from its file and what a run changed of it."""

import pytest

from engram_exp.config.decoders import columns_of, kept_of, tables_of


@pytest.mark.parametrize(
    ("decoder", "options", "dtype", "wanted"),
    [
        ("dense_8b", "", "fp8", (2 * 36 * 8 * 128 * 2, 1024)),  # rows alone are fp8: the decoder computes in bfloat16
        ("dense_4b", "", "float32", (2 * 36 * 8 * 128 * 4, 1024)),
        ("dense_8b", "decoder.layers=18 lookup.widen=false", "bfloat16", (2 * 18 * 8 * 128 * 2, 1024)),
        ("dense_8b", "decoder.context=512", "bfloat16", (2 * 36 * 8 * 128 * 2, 512)),
        ("matmuls", "", "bfloat16", None),
        ("none", "", "bfloat16", None),
        ("of_someone_else", "", "bfloat16", None),
        ("dense_8b", "", "of_someone_else", None),
    ],
)
def test_what_a_sequence_keeps(decoder, options, dtype, wanted):
    assert kept_of(decoder, options, dtype) == wanted


def test_where_a_strategy_keeps_a_layers_table():
    names = "device", "uva", "disk", "cached", "sharded", "of_someone_else"
    told = [
        ("device", "device", 0.0), ("host", "huge", 0.0), ("disk", "file", 0.0), ("host", "huge", 4.0),
        ("device", "shard", 0.0), None,
    ]  # fmt: skip
    assert list(map(tables_of, names)) == told


def test_how_many_columns_ranks_share_out():
    asked = [("deepseek_v41_flash", ""), ("demo", "model.heads=3 model.hidden_size=16"), ("of_someone_else", "")]
    assert [columns_of(*each) for each in asked] == [24, 6, None]
