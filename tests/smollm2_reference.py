"""SmolLM2 as transformers reads it from the GGUF file: the reference of the parity tests and the peer of the benchmark.

The conversion takes half a minute, so its result is kept in the cache, in float32. It is transformers' own: nothing of the engine
takes part in it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def ensure(gguf_file: Path) -> Path:
    """The Hugging Face folder made from the GGUF file."""
    folder = gguf_file.parent.parent / "smollm2-float32"
    if (folder / "config.json").exists():
        return folder
    config = transformers.AutoConfig.for_model(**load_gguf_checkpoint(str(gguf_file))["config"])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = load_gguf_checkpoint(str(gguf_file), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"transformers reads {gguf_file} incompletely: missing {missing}, unexpected {unexpected}")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:
        # Somebody else was faster.
        shutil.rmtree(partial)
    return folder
