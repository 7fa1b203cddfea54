"""The decoder family: configuration, weights, forward pass over a paged KV cache, sampler."""
