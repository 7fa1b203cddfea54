"""Where weights come from: one tensor at a time, by its Hugging Face name, from a folder or a GGUF file.

Invariant: a tensor is read when it is asked for and belongs to the caller; what is missing or malformed is named.
Does not know what the tensors are for (``decoder.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from enginehouse_engine.config import ConfigError
from enginehouse_engine.model.model_config import ModelConfig, from_folder
from enginehouse_engine.model_source import ModelNotFound

if TYPE_CHECKING:
    from safetensors import safe_open as SafetensorsFile

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class WeightSource(Protocol):
    """The weights of one model on disk. Reading from several threads is fine."""

    config: ModelConfig

    def has(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor. Raises ConfigError when there is none."""
        ...

    def read(self, name: str, *, rows: range | None = None, columns: range | None = None) -> torch.Tensor:
        """A tensor, or so many of its rows or columns, on the CPU in the type it is stored in.

        What is not asked for is not converted, and not read where it is not in between. Rows of queries and keys begin and end
        with a head. Raises ConfigError when there is no such tensor.
        """
        ...


def open_weights(model_path: str) -> WeightSource:
    """A GGUF file or a Hugging Face folder. Raises ModelNotFound or ConfigError."""
    path = Path(model_path)
    if path.is_dir():
        return FolderWeights(path)
    if path.is_file():
        from enginehouse_engine.model.gguf_weights import GgufWeights

        return GgufWeights(path)
    raise ModelNotFound(f"there is no model at {path}: it is a GGUF file, or a folder with config.json and safetensors")


class FolderWeights:
    """``model.safetensors``, or the shards that ``model.safetensors.index.json`` lists."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder} holds no config.json: it is no Hugging Face model folder")
        self.config = from_folder(folder)
        self._folder = folder
        self._open: dict[str, SafetensorsFile] = {}
        self._file_of = self._read_index()

    def has(self, name: str) -> bool:
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, *, rows: range | None = None, columns: range | None = None) -> torch.Tensor:
        stored = self._slice(name)
        part: list[slice] = [slice(None) if rows is None else slice(rows.start, rows.stop)]
        if columns is not None:
            part.append(slice(columns.start, columns.stop))
        try:
            tensor: torch.Tensor = stored[tuple(part)]
        except SafetensorError as error:
            raise ConfigError(f"tensor {name} of {self._folder} cannot be read: {error}: use the model in another type") from error
        return tensor

    def _slice(self, name: str) -> Any:
        if name not in self._file_of:
            raise ConfigError(
                f"tensor {name} is not in {self._folder}: the folder does not hold the model its config.json describes"
            )
        return self._open[self._file_of[name]].get_slice(name)

    def _read_index(self) -> dict[str, str]:
        index = self._folder / _INDEX
        if index.is_file():
            try:
                files = set(json.loads(index.read_bytes())["weight_map"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ConfigError(f"{index} is no index of safetensors files: {error}") from error
            if not all(isinstance(file, str) for file in files):
                raise ConfigError(f"{index} is no index of safetensors files: its weight_map names files that are no texts")
        elif (self._folder / _SINGLE).is_file():
            files = {_SINGLE}
        else:
            raise ModelNotFound(f"{self._folder} holds neither {_SINGLE} nor {_INDEX}: only safetensors weights can be read")
        return {name: file for file in sorted(files) for name in self._names(file)}

    def _names(self, file: str) -> list[str]:
        path = self._folder / file
        if path.parent != self._folder:
            raise ConfigError(f"{self._folder / _INDEX} names {file!r}, which is outside the folder")
        try:
            self._open[file] = safe_open(path, framework="pt")
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"{path} cannot be read as safetensors: {error}: download the model again") from error
        return list(self._open[file].keys())
