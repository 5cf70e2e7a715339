"""What a decoder keeps of a token follows from its file and from what a run changed of it."""

import pytest

from engram_exp.config.decoders import token_bytes


@pytest.mark.parametrize(
    ("decoder", "options", "dtype", "wanted"),
    [
        ("dense_8b", "", "fp8", 2 * 36 * 8 * 128 * 2),  # rows alone are fp8: the decoder computes in bfloat16
        ("dense_4b", "", "float32", 2 * 36 * 8 * 128 * 4),
        ("dense_8b", "decoder.layers=18 lookup.widen=false", "bfloat16", 2 * 18 * 8 * 128 * 2),
        ("dense_8b", "decoder.context=512", "bfloat16", 2 * 36 * 8 * 128 * 2),
        ("matmuls", "", "bfloat16", None),
        ("none", "", "bfloat16", None),
        ("of_someone_else", "", "bfloat16", None),
        ("dense_8b", "", "of_someone_else", None),
    ],
)
def test_bytes_of_a_token(decoder, options, dtype, wanted):
    assert token_bytes(decoder, options, dtype) == wanted
