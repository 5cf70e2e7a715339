"""Layers of transformers' Qwen3 with what engines change in them: one product makes queries, keys and values, one gate
and up, and attention neither repeats keys nor takes a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3DecoderLayer,
    Qwen3MLP,
    Qwen3RotaryEmbedding,
    apply_rotary_pos_emb,
)

from engram_exp.decoder.shapes import DenseShape

Pair = tuple[torch.Tensor, torch.Tensor]


def config_of(shape: DenseShape) -> Qwen3Config:
    """What transformers calls these sizes."""
    return Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tied,
    )


def rotary_tables(shape: DenseShape, positions: torch.Tensor, dtype: torch.dtype) -> Pair:
    """Cosines and sines [1, L, D] of positions [L]."""
    return Qwen3RotaryEmbedding(config_of(shape))(torch.empty(0, dtype=dtype), positions[None])


class CachedAttention(Qwen3Attention):
    """Attention of one token to all that is cached, or of a prompt to itself."""

    def __init__(self, config: Qwen3Config, layer: int) -> None:
        super().__init__(config, layer)
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        del self.q_proj, self.k_proj, self.v_proj
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.heads) * self.head_dim, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: Pair, past_key_values: Pair, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """What attention adds to hidden states [B, L, C].

        Args:
            position_embeddings: cosines and sines [1, L, D].
            past_key_values: keys and values of the layer, [B, K, S, D]. A single token's go to the last place, and it
                attends to all; those of more tokens go to the first places, and each attends to those up to its own.
        """
        sequences, tokens, _channels = hidden_states.shape
        heads = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        queries, keys, values = heads.split(self.heads, dim=2)
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings, unsqueeze_dim=2)
        queries, keys, values = (each.transpose(1, 2) for each in (queries, keys, values))  # [B, H or K, L, D]
        cached_keys, cached_values = past_key_values
        places = slice(-1, None) if tokens == 1 else slice(tokens)
        cached_keys[:, :, places].copy_(keys)
        cached_values[:, :, places].copy_(values)
        if tokens == 1:  # heads that share keys are so many queries for them
            queries = queries.reshape(sequences, keys.shape[1], -1, self.head_dim)
            attended = scaled_dot_product_attention(queries, cached_keys, cached_values)
        else:
            attended = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
            attended = attended.transpose(1, 2)
        return self.o_proj(attended.reshape(sequences, tokens, -1)), None


class MergedMLP(Qwen3MLP):
    """The gated MLP with one product for gate and up."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        del self.gate_proj, self.up_proj
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the MLP adds to normed hidden states [..., C]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


def build_layer(config: Qwen3Config, layer: int) -> Qwen3DecoderLayer:
    """A layer on the device `meta`, without memory."""
    with torch.device("meta"):
        built = Qwen3DecoderLayer(config, layer)
        built.self_attn = CachedAttention(config, layer)
        built.mlp = MergedMLP(config)
    return built.requires_grad_(False)
