"""The engine core: scheduler, KV cache accounting, context fit, one step, and the process around them."""
