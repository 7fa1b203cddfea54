"""A random model for tests on a cluster: three workers can share it, and its every token is one printable character."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 96


def make(folder: Path) -> None:
    """Into a folder that exists; pods run as a user of their own and may read it."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(20)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=120,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        initializer_range=0.25,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    characters = [*(chr(code) for code in range(33, 127)), "Ġ", "Ċ"]  # byte-level BPE writes space and newline so
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={text: i for i, text in enumerate(characters)}, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
