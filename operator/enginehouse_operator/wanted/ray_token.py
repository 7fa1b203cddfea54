"""The secret by which the processes of one replica's Ray cluster know each other.

Invariant: one per replica, owned by it, made once and never changed: every pod of the replica mounts the same. Only the engine
container sees it. Does not choose the token (``act.py``), and nobody reads it back.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from enginehouse_operator import names
from enginehouse_operator.api import EngineCopy

from .metadata import Owner, metadata

TOKEN_BYTES: Final = 32
TOKEN_DIR: Final = "/var/run/secrets/enginehouse/ray-token"
TOKEN_KEY: Final = "token"


def needs_token(copy: EngineCopy) -> bool:
    return copy.executor == "Ray"


def token_secret(owner: Owner, *, token: str) -> dict[str, Any]:
    """``owner`` is the replica."""
    name = names.token_secret_name(owner.name, replica_uid=owner.uid)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(owner, name, labels={names.LABEL_REPLICA: owner.name}),
        "type": "Opaque",
        "immutable": True,
        "data": {TOKEN_KEY: base64.b64encode(token.encode()).decode()},
    }


def token_volume(owner: Owner) -> dict[str, Any]:
    """Readable for the pod's group alone."""
    secret = {
        "secretName": names.token_secret_name(owner.name, replica_uid=owner.uid),
        "items": [{"key": TOKEN_KEY, "path": TOKEN_KEY}],
        "defaultMode": 0o440,
    }
    return {"name": "ray-token", "secret": secret}


def token_mount() -> dict[str, Any]:
    """In the engine container."""
    return {"name": "ray-token", "mountPath": TOKEN_DIR, "readOnly": True}
