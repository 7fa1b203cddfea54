"""A namespace whose pods the API server itself holds to the `restricted` Pod Security Standard.

The one job: its manifest, for every test with engines in it. The invariant kept: there is no way to ask for a laxer one.
Not done here: making it.
"""

from __future__ import annotations

from typing import Any


def manifest(name: str) -> dict[str, Any]:
    """As kubectl and the client take it."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
