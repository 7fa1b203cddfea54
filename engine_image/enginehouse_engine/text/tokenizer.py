"""The tokenizer of the served model, whatever kind of file describes it.

Invariant: the same text gives the same tokens as the model's own tokenizer does, and the bytes of any token are known, so that
text can be put together again byte by byte. Does not render chats and does not cut text at stop strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from enginehouse_engine.text import gguf_tokenizer
from enginehouse_engine.text.byte_alphabet import BYTE_TO_CHARACTER, CHARACTER_TO_BYTE
from enginehouse_engine.text.gguf_metadata import GgufError, read_metadata

_BYTE_TEMPLATE: Final = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


class TokenizerError(Exception):
    """The model's text side cannot be used: what was wanted, what was found, what to do."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text to token ids and token ids to bytes. Safe to use from several threads."""

    backend: Backend = field(repr=False)
    prefix: tuple[int, ...] | None = None
    """Ids every prompt starts with; None = what the backend's post-processor adds."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """``bos_token``, ``eos_token``, ...: what chat templates may name."""
    chat_template: str | None = None

    @cached_property
    def vocab_size(self) -> int:
        """Every id is below it."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def longest_token(self) -> int:
        """Characters of a text that one token can stand for at most."""
        longest = max(map(len, self.backend.get_vocab(with_added_tokens=True)))
        # A normalizer may put characters together first: Unicode's canonical composition makes one of four or fewer.
        return longest if self.backend.normalizer is None else 4 * longest

    @cached_property
    def byte_level(self) -> bool:
        """Whether tokens are spelled in the byte alphabet; else they are SentencePiece's."""
        return "ByteLevel" in _decoder_kinds(self.backend)

    @cached_property
    def drops_first_space(self) -> bool:
        """Whether the space that a text's first token begins with was added by the tokenizer and is no part of the text."""
        steps = _decoder_steps(self.backend)
        is_dropped = any(step["type"] == "Strip" or step.get("prepend_scheme", "never") != "never" for step in steps)
        return is_dropped and not self.byte_level

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``; with ``add_special_tokens`` what the model expects at the start of a prompt comes first."""
        own = self.prefix is None
        # The batch call lets other threads run meanwhile, `encode` does not; the fast one computes no offsets.
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=own and add_special_tokens)
        ids: list[int] = encoding.ids
        return [*self.prefix, *ids] if self.prefix and add_special_tokens else ids

    def decode(self, tokens: list[int]) -> str:
        """The text of ``tokens`` in one piece, without special tokens."""
        text: str = self.backend.decode(tokens, skip_special_tokens=True)
        return text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that ``token`` stands for, special tokens included; empty for an id that is no token."""
        if (known := self._bytes.get(token)) is None:
            known = self._bytes[token] = self._spell(token)
        return known

    @cached_property
    def hidden(self) -> frozenset[int]:
        """Ids that never come out as text."""
        return frozenset(id for id, added in self.backend.get_added_tokens_decoder().items() if added.special)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        added = self.backend.get_added_tokens_decoder()
        # A space is written as in every other token: SentencePiece vocabularies have runs of them among those that were added.
        texts = {id: token.content for id, token in added.items()}
        return {id: (text if self.byte_level else text.replace("\u2581", " ")).encode() for id, text in texts.items()}

    def _spell(self, token: int) -> bytes:
        spelled: str | None = self.backend.id_to_token(token)
        if spelled is None:
            return b""
        if self.byte_level:
            try:
                return bytes(CHARACTER_TO_BYTE[character] for character in spelled)
            except KeyError:
                return spelled.encode()  # It stands for itself, as in the library's decoder.
        if len(spelled) == 6 and spelled.startswith("<0x"):
            return bytes.fromhex(spelled[3:5])
        return spelled.replace("\u2581", " ").encode()


def load(model_path: str) -> Tokenizer:
    """The tokenizer of a GGUF file or a Hugging Face folder; of bytes when the path is empty. Raises TokenizerError."""
    if not model_path:
        return byte_tokenizer()
    path = Path(model_path)
    try:
        tokenizer = _from_folder(path) if path.is_dir() else _from_gguf(path)
    except TokenizerError:
        raise
    except Exception as error:  # What the library raises is no narrower, and the files come from anywhere.
        raise TokenizerError(f"the tokenizer of {path} cannot be used: {error}; get the model again") from error
    kinds = _decoder_kinds(tokenizer.backend)
    if kinds.isdisjoint({"ByteLevel", "ByteFallback", "Metaspace", "Replace"}):
        raise TokenizerError(f"the tokenizer of {path} decodes by {sorted(kinds)}; wanted byte-level BPE or a SentencePiece kind")
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """For simulated engines without a model: ids 0 to 255 are bytes, 256 is the end of text."""
    vocab = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return Tokenizer(
        backend=backend,
        prefix=(),
        special_tokens={"eos_token": "<|endoftext|>"},
        chat_template=_BYTE_TEMPLATE,
    )


def _from_gguf(path: Path) -> Tokenizer:
    try:
        metadata = read_metadata(path)
        backend = gguf_tokenizer.build(metadata)
    except (OSError, GgufError) as error:
        raise TokenizerError(str(error)) from error
    except gguf_tokenizer.UnsupportedTokenizer as error:
        raise TokenizerError(f"{path}: {error}") from error
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names}
    known = {name: id for name, id in ids.items() if isinstance(id, int) and id < len(tokens)}
    return Tokenizer(
        backend=backend,
        prefix=(known["bos"],) if "bos" in known and gguf_tokenizer.adds_bos(metadata) else (),
        special_tokens={names[name]: tokens[id] for name, id in known.items()},
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _from_folder(path: Path) -> Tokenizer:
    file = path / "tokenizer.json"
    if not file.is_file():
        found = ", ".join(sorted(entry.name for entry in path.iterdir() if "token" in entry.name)) or "no tokenizer file"
        raise TokenizerError(f"{path} has no tokenizer.json (found: {found}); save the model with its fast tokenizer")
    backend = Backend.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    config = _json(path / "tokenizer_config.json")
    special = _special_tokens(config)
    prefix = None
    if isinstance(config.get("add_bos_token"), bool):
        bos = backend.token_to_id(special.get("bos_token", ""))
        prefix = (bos,) if config["add_bos_token"] and bos is not None else ()
    return Tokenizer(
        backend=backend,
        prefix=prefix,
        special_tokens=special,
        chat_template=_folder_template(path, config),
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens of tokenizer_config.json, written as a string or as an added token."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _folder_template(path: Path, config: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    said = config.get("chat_template")
    if isinstance(said, list):
        said = {entry.get("name"): entry.get("template") for entry in said}.get("default")
    return said if isinstance(said, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file}: wanted a JSON object, found {type(value).__name__}")
    return value


def _decoder_kinds(backend: Backend) -> frozenset[str]:
    """The types in the backend's decoder, such as ``ByteLevel``."""
    return frozenset(step["type"] for step in _decoder_steps(backend))


def _decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    """The backend's decoder as the library writes it; one in several steps is followed by these."""
    if backend.decoder is None:
        return []
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return [state, *state.get("decoders", ())]
