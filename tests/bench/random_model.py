"""A random model with a tokenizer of bytes, as a folder that any user may read.

    python random_model.py FOLDER

A program of its own: what torch takes to make it is free again when the engines run.
"""

from __future__ import annotations

import sys
from pathlib import Path

CONTEXT_TOKENS = 4096
SHAPE = {
    # As many as there are bytes: a token without text would not be seen in a stream, and greedy answers repeat one token.
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": CONTEXT_TOKENS,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Little to compute, much to remember: 24 KiB of cache for each token in bfloat16."""


def save(folder: Path) -> None:
    """Of fixed seed."""
    import torch
    import transformers

    from enginehouse_engine.text.tokenizer import byte_tokenizer

    torch.manual_seed(20)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE), dtype=torch.float32)
    model.save_pretrained(folder)
    byte_tokenizer().backend.save(str(folder / "tokenizer.json"))
    folder.chmod(0o755)
    for entry in folder.iterdir():
        entry.chmod(0o644)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
