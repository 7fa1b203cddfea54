"""Builds the tokenizer that a GGUF file describes in its metadata.

A GGUF file names its algorithm (``tokenizer.ggml.model``) and, for byte-level BPE, the way text is cut before merging
(``tokenizer.ggml.pre``); both decide the tokens, so an unknown name is refused instead of guessed.
Pure: metadata in, a ``tokenizers.Tokenizer`` out. Does not read files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from enginehouse_engine.text.byte_alphabet import BYTE_TO_CHARACTER, CHARACTER_TO_BYTE

_NORMAL: Final = 1
_UNKNOWN: Final = 2
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_SPECIAL: Final = (_UNKNOWN, _CONTROL)
_ADDED: Final = (*_SPECIAL, _USER_DEFINED)
_ALPHABET: Final = frozenset(CHARACTER_TO_BYTE)

_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SPLITS: Final[Mapping[str, str]] = {
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "tekken": _TEKKEN,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
_GPT2: Final = ("gpt-2", "default", "")
_SINGLE_DIGITS: Final = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_IGNORE_MERGES: Final = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
"""A word that is a token needs no merges to become it: so are these vocabularies published."""


class UnsupportedTokenizer(Exception):
    """The file's tokenizer is of a kind that is not known here: what was found, what is supported."""


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file, special tokens added, without BOS. Raises UnsupportedTokenizer."""
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(metadata.get("tokenizer.ggml.tokens"), list):
        raise UnsupportedTokenizer("the GGUF file carries no vocabulary (tokenizer.ggml.tokens)")
    if kind == "gpt2":
        return _byte_level(metadata)
    if kind == "llama":
        return _sentencepiece(metadata)
    raise UnsupportedTokenizer(f"tokenizer.ggml.model is {kind!r}; supported: 'gpt2' (byte-level BPE), 'llama' (SentencePiece BPE)")


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether a prompt starts with the BOS token; files that do not say follow the habit of their kind."""
    said = metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(said, bool):
        return said
    return metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in _IGNORE_MERGES


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types = _token_types(metadata)
    vocab = {
        # Added tokens stand in the file as text; a token of merges is spelled in the byte alphabet, or made to be.
        token
        if kind in _ADDED or _ALPHABET.issuperset(token)
        else "".join(BYTE_TO_CHARACTER[byte] for byte in token.encode()): index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
    }
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", ())]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=pre in _IGNORE_MERGES))
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _GPT2:
        tokenizer.pre_tokenizer = gpt2
    elif pre in _SINGLE_DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    elif split := _SPLITS.get(pre):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        known = sorted({*_SPLITS, *_GPT2, *_SINGLE_DIGITS} - {""})
        raise UnsupportedTokenizer(f"tokenizer.ggml.pre is {pre!r}; supported: {', '.join(known)}")
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types = _token_types(metadata)
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise UnsupportedTokenizer(f"a SentencePiece vocabulary of {len(tokens)} tokens needs as many tokenizer.ggml.scores")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    vocab = {token: index for index, token in enumerate(tokens)}
    model = BPE(vocab=vocab, merges=_merges(tokens, types, scores), fuse_unk=True, byte_fallback=True, unk_token=tokens[unknown])
    tokenizer = Tokenizer(model)
    prefix_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix_space else "never", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if prefix_space else steps)
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def _merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose result scores best: every way to cut a token in two tokens, best result first."""
    joinable = {token for token, kind in zip(tokens, types, strict=True) if kind in (_NORMAL, _USER_DEFINED)}
    found = [
        (score, cut, token)
        for token, score in zip(tokens, scores, strict=True)
        if token in joinable
        for cut in range(1, len(token))
        if token[:cut] in joinable and token[cut:] in joinable
    ]
    found.sort(key=lambda merge: (-merge[0], -merge[1]))
    return [(token[:cut], token[cut:]) for _, cut, token in found]


def _token_types(metadata: Mapping[str, Any]) -> list[int]:
    count = len(metadata["tokenizer.ggml.tokens"])
    types = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * count)
    if not isinstance(types, list) or len(types) != count:
        raise UnsupportedTokenizer(f"a vocabulary of {count} tokens needs as many tokenizer.ggml.token_type")
    return types


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Control tokens never come out as text; user-defined ones do. Both are matched whole, before the text is cut."""
    kinds = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token, kind in kinds if kind == _USER_DEFINED])
