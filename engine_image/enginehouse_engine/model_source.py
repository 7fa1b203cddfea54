"""From a model's URI to a path on this machine.

``file:///path`` and plain paths are looked at, ``hf://org/name`` (a Hugging Face folder) and ``hf://org/name/file.gguf`` (one file)
are downloaded by the hub library, which resumes, verifies and shares its cache; ``HF_TOKEN`` and ``HF_ENDPOINT`` are read by it.
Invariant: what is returned exists and is a GGUF file or a folder with ``config.json``. Does not read the model.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from enginehouse_engine.config import ConfigError

_WANTED_FILES: Final = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model"]
"""Of a folder: what the engine reads, and not the same weights once more in other formats."""
_IN_FOLDERS: Final = ["*/*"]
"""Folders inside a repository hold other formats or revisions."""
_WANTED: Final = "give a Hugging Face model's folder, or name a GGUF file, as in hf://ORG/NAME/FILE.gguf"


class ModelNotFound(ConfigError):
    """There is no such model: what was wanted, what was found, what to do."""

    failure_class = "ModelNotFound"


def resolve(uri: str, *, revision: str = "main", cache_dir: Path | None = None) -> Path:
    """The model's GGUF file or folder, downloaded if need be. Raises ModelNotFound, and OSError when the network breaks."""
    if uri.startswith("hf://"):
        return _checked(_download(uri, revision=revision, cache_dir=cache_dir), uri)
    if uri.startswith("file://"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise ModelNotFound(f"{uri} names the host {parts.netloc!r}: wanted file:///PATH with three slashes")
        return _checked(Path(unquote(parts.path)), uri)
    if "://" in uri:
        scheme = uri.partition("://")[0]
        raise ModelNotFound(f"{uri}: unknown scheme {scheme!r}; wanted a path, file:///PATH or hf://ORG/NAME")
    return _checked(Path(os.path.expanduser(uri)).absolute(), uri)


def _checked(path: Path, uri: str) -> Path:
    """``path``, if a model is there."""
    try:
        return _looked_at(path, uri)
    except PermissionError as error:
        raise ModelNotFound(f"{uri}: {error.filename} may not be read by user {os.geteuid()}: let it be read by all") from error
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise ModelNotFound(f"{uri}: {path} is no path: {error.strerror}") from error


def _looked_at(path: Path, uri: str) -> Path:
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ModelNotFound(f"{uri}: {path} is no GGUF file (it starts with {magic!r}); give a GGUF file or a model's folder")
        return path
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        found = sorted(entry.name for entry in path.iterdir())
        shown = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "") if found else "nothing"
        raise ModelNotFound(f"{uri}: {path} has no config.json (found: {shown}); {_WANTED}")
    raise ModelNotFound(f"{uri}: {path} does not exist on this machine{_nearest(path)}")


def _nearest(path: Path) -> str:
    """How far the path exists: most wrong paths are a missing mount or a typing error in one place."""
    parent = next((parent for parent in path.parents if parent.is_dir()), None)
    if parent is None:
        return ""
    found = sorted(os.listdir(parent))[:10]
    return f"; {parent} exists and holds {', '.join(found) if found else 'nothing'}"


def _download(uri: str, *, revision: str, cache_dir: Path | None) -> Path:
    # Half a second of imports that no other kind of URI needs.
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    organisation, _, rest = uri.removeprefix("hf://").partition("/")
    name, _, file = rest.strip("/").partition("/")
    if not organisation or not name:
        raise ModelNotFound(f"{uri}: wanted hf://ORG/NAME or hf://ORG/NAME/FILE.gguf")
    repository = f"{organisation}/{name}"
    try:
        if file:
            return Path(hf_hub_download(repository, file, revision=revision, cache_dir=cache_dir))
        folder = snapshot_download(
            repository, revision=revision, cache_dir=cache_dir, allow_patterns=_WANTED_FILES, ignore_patterns=_IN_FOLDERS
        )
        if not Path(folder).is_dir():
            raise ModelNotFound(f"{uri}: {repository} has none of {', '.join(_WANTED_FILES)}; {_WANTED}")
        return Path(folder)
    except HFValidationError as error:
        raise ModelNotFound(f"{uri}: {repository!r} is no name of a repository: {error}") from error
    except GatedRepoError as error:
        raise ModelNotFound(f"{uri}: access must be asked for at the hub, and HF_TOKEN be of an account that has it") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{uri}: the hub has no repository {repository}, or it is private and HF_TOKEN does not open it"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{uri}: {repository} has no branch, tag or commit {revision!r}") from error
    except LocalEntryNotFoundError as error:
        # Not ModelNotFound: trying again can help.
        raise OSError(f"{uri}: the hub cannot be reached, and the model is not in the cache: {error}") from error
    except EntryNotFoundError as error:
        raise ModelNotFound(f"{uri}: {repository} has no file {file!r} at revision {revision!r}") from error
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise ModelNotFound(f"{uri}: the hub does not know the token in HF_TOKEN") from error
        raise OSError(f"{uri}: the hub answered {error}") from error
