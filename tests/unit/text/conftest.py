"""Models that the text side is tried on: the real SmolLM2 where this machine has it, and small ones of each kind made here."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from enginehouse_engine.text.byte_alphabet import BYTE_TO_CHARACTER

SMOLLM2 = Path.home() / ".cache/enginehouse/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "Hello world 2025, it's 3.14159 o'clock; we'll see 1000000 stars.",
    "  two spaces, three   spaces\ttab\n\nnewlines\r\n  end  ",
    "naïve café, Zürich, Ελληνικά, русский, 日本語, العربية, हिन्दी, 한국어",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 and ½ ² Ⅻ ٣ digits",
    "def f(x):\n    return x ** 2  # CamelCaseWord HTTPServer snake_case\n",
    "DON'T Don't don'T we'LL I'D",
    "a\u00a0b\u200bc\ufeffd\u0301e\x00f\x7fg",
    "https://example.org/a?b=c&d=%20#e ...!!! ---- ==== $$$ ((()))",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<think>why</think><s>not</s> <unk> <0x0A> \u2581x",
]

_CORPUS = [*TEXTS, *(f"The number {n} is followed by {n + 1}; isn't it? Straße {n % 7} — naïve." for n in range(400))]
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    if not SMOLLM2.is_file():
        pytest.skip(f"the SmolLM2 model is not in {SMOLLM2}")
    return SMOLLM2


def trained_byte_level() -> Tokenizer:
    """Byte-level BPE with Llama 3's way of cutting, two control tokens and a user-defined one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        initial_alphabet=sorted(BYTE_TO_CHARACTER.values()),
        special_tokens=["<|begin|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def trained_sentencepiece() -> tuple[list[str], list[float], list[int]]:
    """A vocabulary as SentencePiece's BPE writes it: unknown, control, 256 bytes, then pieces with falling scores."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    corpus = [text for text in _CORPUS if "<s>" not in text]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    pieces = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    singles = [piece for piece in pieces if len(piece) == 1]
    joined = [piece for piece in pieces if len(piece) > 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *singles]
    scores = [0.0] * 259 + [-float(place) for place in range(len(joined) + len(singles))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(joined) + len(singles))
    return tokens, scores, types


def write_byte_level(path: Path, *, pre: str, tokenizer: Tokenizer | None = None) -> Path:
    """A GGUF file with no tensors and a byte-level vocabulary."""
    tokenizer = tokenizer or trained_byte_level()
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])] + ["<think>"]
    writer = _writer(path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 3), 4])
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    return _write(writer, path)


def write_sentencepiece(path: Path) -> Path:
    """A GGUF file with no tensors and a SentencePiece vocabulary."""
    tokens, scores, types = trained_sentencepiece()
    writer = _writer(path)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return _write(writer, path)


def _writer(path: Path) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    # What transformers wants to know of any Llama before it looks at the tokenizer.
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(1000)
    return writer


def _write(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
