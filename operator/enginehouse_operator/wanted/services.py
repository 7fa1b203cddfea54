"""The services of an engine: the one clients use, and the headless one that names its members.

Invariant: the serving service selects leaders in service and nothing else; taking one label off a pod takes it out.
Does not apply anything.
"""

from __future__ import annotations

from typing import Any

from enginehouse_operator import names
from enginehouse_operator.api import Service

from .metadata import Owner, marked, metadata


def services(owner: Owner, service: Service, *, scheme: str) -> tuple[dict[str, Any], ...]:
    """In the order in which they are applied. ``scheme`` is what the engine speaks: http or https."""
    port = {
        "name": names.HTTP_PORT_NAME,
        "port": service.port,
        "targetPort": names.HTTP_PORT_NAME,
        "protocol": "TCP",
        "appProtocol": scheme,
    }
    serving = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, names.service_name(owner.engine), labels={}),
        "spec": {
            "type": service.type,
            "selector": {names.LABEL_ENGINE: owner.engine, names.LABEL_SERVING: "true"},
            "ports": [port],
        },
    }
    members = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, names.members_service_name(owner.engine), labels={}),
        "spec": {
            "clusterIP": "None",
            # Members look each other up before they are ready.
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_ENGINE: owner.engine},
            # By number: a worker has neither port, and is named all the same.
            "ports": [
                port | {"port": names.HTTP_PORT, "targetPort": names.HTTP_PORT},
                {
                    "name": names.MEMBERS_PORT_NAME,
                    "port": names.MEMBERS_PORT,
                    "targetPort": names.MEMBERS_PORT,
                    "protocol": "TCP",
                },
            ],
        },
    }
    return marked(members), marked(serving)


def endpoint(owner: Owner, service: Service, *, scheme: str) -> str:
    """The URL of the OpenAI API inside the cluster."""
    port = "" if service.port == {"http": 80, "https": 443}[scheme] else f":{service.port}"
    return f"{scheme}://{names.service_name(owner.engine)}.{owner.namespace}.svc{port}"
