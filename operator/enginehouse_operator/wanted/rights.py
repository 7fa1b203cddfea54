"""The rights of one replica's monitors: a service account, a role for that one replica, and the binding.

Invariant: a monitor may read its own replica and write that replica's status, by name; nothing else in the cluster.
Does not apply anything.
"""

from __future__ import annotations

from typing import Any

from enginehouse_operator import names

from .metadata import Owner, marked, metadata


def rights(owner: Owner) -> tuple[dict[str, Any], ...]:
    """``owner`` is the replica; everything carries its name. In the order in which they are applied."""
    own = metadata(owner, owner.name, labels={names.LABEL_REPLICA: owner.name})
    api = "rbac.authorization.k8s.io"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": own, "automountServiceAccountToken": False}
    role = {
        "apiVersion": f"{api}/v1",
        "kind": "Role",
        "metadata": own,
        "rules": [
            {
                "apiGroups": [names.GROUP],
                "resources": ["enginereplicas"],
                "resourceNames": [owner.name],
                "verbs": ["list", "watch"],
            },
            {
                "apiGroups": [names.GROUP],
                "resources": ["enginereplicas/status"],
                "resourceNames": [owner.name],
                "verbs": ["patch"],
            },
        ],
    }
    binding = {
        "apiVersion": f"{api}/v1",
        "kind": "RoleBinding",
        "metadata": own,
        "roleRef": {"apiGroup": api, "kind": "Role", "name": owner.name},
        "subjects": [{"kind": "ServiceAccount", "name": owner.name, "namespace": owner.namespace}],
    }
    return marked(account), marked(role), marked(binding)
