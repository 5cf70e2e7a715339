"""Projection: embeddings -> keys, each RMS-normed, and one value.

Every projection is built as `Projection(weights, max_tokens, placement)` and called with embeddings [T, H * D]; it
returns keys [T, M, C] and value [T, C] in the compute dtype. `kv_buffers` says how often it holds these at a time.
"""
