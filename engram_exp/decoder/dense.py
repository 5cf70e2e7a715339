"""A dense decoder as engines run it: transformers' layers, a kept key-value cache, compiled and captured at will."""

from __future__ import annotations

import torch
import torch._dynamo
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from engram_exp.decoder.decoder import Decoder, Step
from engram_exp.decoder.qwen3 import Pair, build_layer, config_of, rotary_tables
from engram_exp.decoder.shapes import DenseShape
from engram_exp.errors import ConfigError
from engram_exp.machine.placement import Placement

COMPILED_STEPS = 64  # shapes of steps that one process may compile; PyTorch allows 8 unless told


class DenseDecoder(Decoder[DenseShape]):
    """Layers with random weights, and a cache full of random keys and values.

    The last matrices of attention and MLP are scaled by the number of layers, so that all layers together add as much,
    however many there are.
    """

    def __init__(self, shape: DenseShape, sequences: int, dtype: torch.dtype, seed: int, placement: Placement) -> None:
        super().__init__(shape, sequences, dtype, seed, placement)
        config = config_of(shape)
        self.layers = [self._filled(build_layer(config, layer)) for layer in range(shape.layers)]
        cached = (sequences, shape.kv_heads, shape.context, shape.head_dim)
        self.cache = [(self.random(*cached, std=1.0), self.random(*cached, std=1.0)) for _ in self.layers]
        self.through_layer = _through_layer
        if shape.compile:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_STEPS)
            self.through_layer = torch.compile(_through_layer, dynamic=False, fullgraph=True)

    def step(self, sequences: int, tokens: int) -> DenseStep:
        """A step of so many tokens of each of some sequences: of one, it decodes; of more, they are prompts.

        Raises:
            ConfigError: prompts that the context cannot hold.
        """
        return DenseStep(self, sequences, tokens)

    def _filled(self, layer: Qwen3DecoderLayer) -> Qwen3DecoderLayer:
        layer = layer.to(self.dtype).to_empty(device=self.placement.device)
        for parameter in layer.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1)  # the gain of a norm
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=self.generator)
        for added in (layer.self_attn.o_proj, layer.mlp.down_proj):
            added.weight.mul_((2 * self.shape.layers) ** -0.5)
        return layer


class DenseStep(Step):
    """A step of a dense decoder. A decode step's tokens stand at the context's last position, those of a prompt at its
    first ones; keys and values are written there before attention reads."""

    decoder: DenseDecoder

    def __init__(self, decoder: DenseDecoder, sequences: int, tokens: int) -> None:
        context = decoder.shape.context
        if tokens > context:
            raise ConfigError("decoder.context", context, f"prompts have {tokens} tokens; set it to that, or more")
        super().__init__(decoder, sequences, tokens)
        first = context - 1 if tokens == 1 else 0
        tables = rotary_tables(decoder.shape, torch.arange(first, first + tokens), decoder.dtype)
        cosines, sines = (table.to(decoder.placement.device) for table in tables)
        self.rotary = (cosines, sines)
        self.cache = [(keys[:sequences], values[:sequences]) for keys, values in decoder.cache]

    def through(self, layers: range, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden state [T, C] behind some layers."""
        hidden = hidden.view(self.sequences, self.tokens, -1)
        for layer in layers:
            hidden = self.decoder.through_layer(self.decoder.layers[layer], hidden, self.rotary, self.cache[layer])
        return hidden.flatten(0, 1)


def _through_layer(layer: Qwen3DecoderLayer, hidden: torch.Tensor, rotary: Pair, cache: Pair) -> torch.Tensor:
    """Hidden states [B, L, C] behind a layer. One function for all layers: compiled once for each shape of step."""
    return layer(hidden, position_embeddings=rotary, past_key_values=cache)
