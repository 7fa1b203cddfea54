"""The only module that talks to Kubernetes: read, create, apply, patch and delete the twelve kinds that the operator knows.

Invariant: every request has a deadline; a patch and a deletion name the object by UID, a replacement by its version, so that they
never hit a namesake; an answer that is no success becomes one of the errors below, decided by the caller and never retried here.
Built on the transport of the official client (authentication, TLS, proxies); paths and JSON are ours, so that nothing is
discovered at start and objects stay plain dictionaries. Does not watch (``handlers.py``) and does not decide.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio import client as transport
from kubernetes.aio import config as transport_config

from . import metrics, names
from .apply_body import apply_body

REQUEST_SECONDS: Final = 15.0
PAGE: Final = 500
_DEADLINE: Final = aiohttp.ClientTimeout(total=REQUEST_SECONDS)


class ApiError(Exception):
    """The API server did not do what was asked: HTTP ``status`` (0 = no answer) and its words."""

    def __init__(self, what: str, *, status: int, reason: str = "", message: str = "") -> None:
        super().__init__(f"{what}: {status or 'no answer'} {reason}: {message}")
        self.what = what
        self.status = status
        self.reason = reason
        self.message = message


class NoCluster(Exception):
    """Nothing says where an API server is."""


class NotFound(ApiError):
    """404."""


class Conflict(ApiError):
    """409, and 422 of a condition of ours: it exists already, or is not what was meant. The next pass sees which."""


class Invalid(ApiError):
    """400 or 422: the API server refuses what the object says."""


class Forbidden(ApiError):
    """403: a quota, an admission policy, or a right that is missing. Also an admission webhook that could not be asked (500)."""


class Unavailable(ApiError):
    """No answer, or any other, such as 401, 410, 429 and 5xx: later, perhaps."""


_ERRORS: Final[dict[int, type[ApiError]]] = {400: Invalid, 403: Forbidden, 404: NotFound, 409: Conflict, 422: Invalid}


class Kind(msgspec.Struct, frozen=True):
    """A kind of objects, and where it lives."""

    api_version: str
    word: str
    plural: str

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        root = "api" if "/" not in self.api_version else "apis"
        parts = [root, self.api_version, "namespaces" if namespace else "", namespace, self.plural, name, subresource]
        return "/" + "/".join(part for part in parts if part)


ENGINES: Final = Kind(names.API_VERSION, names.ENGINE_KIND, "inferenceengines")
REPLICAS: Final = Kind(names.API_VERSION, names.REPLICA_KIND, "enginereplicas")
PODS: Final = Kind("v1", "Pod", "pods")
SERVICES: Final = Kind("v1", "Service", "services")
SECRETS: Final = Kind("v1", "Secret", "secrets")
SERVICE_ACCOUNTS: Final = Kind("v1", "ServiceAccount", "serviceaccounts")
ROLES: Final = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDINGS: Final = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
CLAIMS: Final = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
EVENTS: Final = Kind("v1", "Event", "events")
DISRUPTION_BUDGETS: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
LEASES: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")

_WRITTEN: Final = (
    REPLICAS, PODS, SERVICES, SECRETS, SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS, DISRUPTION_BUDGETS, EVENTS, LEASES,
)  # fmt: skip
BY_KIND: Final = {kind.word: kind for kind in _WRITTEN}
"""Of what the operator makes."""

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
"""Of whatever is read by its name."""

Raw = dict[str, Any]
_decode = msgspec.json.Decoder().decode

_APPLY: Final = "application/apply-patch+yaml; charset=utf-8"
"""With a parameter the transport sends a text as it is; without, it makes JSON of it, which is not always YAML."""
_MERGE: Final = "application/merge-patch+json"
_JSON_PATCH: Final = "application/json-patch+json"


async def configure() -> transport.Configuration:
    """From the pod's service account, or else KUBECONFIG or ~/.kube/config. Raises NoCluster when there is neither."""
    found = transport.Configuration()
    try:
        transport_config.load_incluster_config(client_configuration=found)
    except transport_config.ConfigException:
        try:
            await transport_config.load_kube_config(client_configuration=found)
        except transport_config.ConfigException as error:
            words = "this is no pod with a service account, and KUBECONFIG or ~/.kube/config names no cluster"
            raise NoCluster(f"{words}: {error}") from error
    # As kopf's watches: a proxy of the kubeconfig's, and none of the environment's.
    found.client_session_kwargs = {"trust_env": False}
    return found


class KubernetesClient:
    """One connection pool. Use as an asynchronous context manager."""

    def __init__(self, configuration: transport.Configuration) -> None:
        self._transport = transport.ApiClient(configuration)
        self._transport.user_agent = names.FIELD_MANAGER

    async def __aenter__(self) -> KubernetesClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        """The object, or None when there is none."""
        if not _NAME.fullmatch(name):
            return None  # No object has it. Users name claims as they like, and "../" would lead to what is not theirs.
        try:
            return await self._send("GET", kind.path(namespace, name), counted=("get", kind.plural))
        except NotFound:
            return None

    async def list(self, kind: Kind, namespace: str, *, selector: str = "", limit: int | None = None) -> list[Raw]:
        """All of them, as of now (a quorum read), in pages; or the first ``limit``."""
        found: list[Raw] = []
        more: str | None = ""
        while more is not None:
            query = {"limit": str(limit or PAGE)} | ({"labelSelector": selector} if selector else {})
            query |= {"continue": more} if more else {}
            page = await self._send("GET", kind.path(namespace), query, counted=("list", kind.plural))
            found += page["items"]
            more = page["metadata"].get("continue") or None if limit is None else None
        return found

    async def create(self, manifest: Raw, *, dry_run: bool = False) -> Raw:
        """POST. Raises Conflict when the name is taken."""
        kind, metadata = BY_KIND[manifest["kind"]], manifest["metadata"]
        query = {"fieldManager": names.FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        counted = ("try" if dry_run else "create", kind.plural)
        return await self._send("POST", kind.path(metadata["namespace"]), query, body=manifest, counted=counted)

    async def apply(self, manifest: Raw) -> Raw:
        """Server-side apply of the whole intent; made when absent."""
        kind, metadata = BY_KIND[manifest["kind"]], manifest["metadata"]
        return await self._apply(kind.path(metadata["namespace"], metadata["name"]), manifest, kind.plural)

    async def apply_status(self, kind: Kind, seen: Mapping[str, Any], status: Raw, *, version: str | None = None) -> Raw:
        """Server-side apply of the operator's part of a status, which looks at no UID. Raises Conflict when the object is another
        ``version`` by now, if one is given."""
        metadata = {key: seen["metadata"][key] for key in ("name", "namespace")}
        body = {
            "apiVersion": seen["apiVersion"],
            "kind": seen["kind"],
            "metadata": metadata | ({} if version is None else {"resourceVersion": version}),
            "status": status,
        }
        return await self._apply(kind.path(metadata["namespace"], metadata["name"], "status"), body, f"{kind.plural}/status")

    async def merge(self, kind: Kind, namespace: str, name: str, *, uid: str, patch: Raw) -> Raw:
        """Merge patch of the object with this UID. Raises Conflict when it is another one, NotFound when it is gone."""
        body = patch | {"metadata": {**patch.get("metadata", {}), "uid": uid}}
        query = {"fieldManager": names.FIELD_MANAGER}
        counted = ("patch", kind.plural)
        try:
            return await self._send("PATCH", kind.path(namespace, name), query, body=body, content_type=_MERGE, counted=counted)
        except Invalid as error:
            if "metadata.uid" not in error.message:
                raise
            raise Conflict(error.what, status=error.status, reason=error.reason, message=error.message) from error

    async def remove_from_status(
        self, kind: Kind, namespace: str, name: str, *, uid: str, path: str, known: Mapping[str, str]
    ) -> Raw:
        """Take one element of a list out of a status. Raises Conflict when the object is another one, or when the element at
        ``path`` does not have the ``known`` values any more."""
        tests = [{"op": "test", "path": "/metadata/uid", "value": uid}]
        tests += [{"op": "test", "path": f"{path}/{key}", "value": value} for key, value in known.items()]
        body = [*tests, {"op": "remove", "path": path}]
        where, query = kind.path(namespace, name, "status"), {"fieldManager": names.FIELD_MANAGER}
        counted = ("patch", f"{kind.plural}/status")
        try:
            return await self._send("PATCH", where, query, body=body, content_type=_JSON_PATCH, counted=counted)
        except Invalid as error:
            raise Conflict(error.what, status=error.status, reason=error.reason, message=error.message) from error

    async def replace(self, manifest: Raw) -> Raw:
        """PUT, refused (Conflict) unless ``metadata.resourceVersion`` is still the present one."""
        kind, metadata = BY_KIND[manifest["kind"]], manifest["metadata"]
        where = kind.path(metadata["namespace"], metadata["name"])
        return await self._send("PUT", where, body=manifest, counted=("update", kind.plural))

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> Raw | None:
        """Delete the object with this UID; what is left of it for a while, None when it is gone. Gone already, or another one by
        now, is as good."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            found = await self._send("DELETE", kind.path(namespace, name), body=body, counted=("delete", kind.plural))
        except (NotFound, Conflict):
            return None
        return found if found.get("metadata", {}).get("deletionTimestamp") else None

    async def _apply(self, path: str, body: Raw, what: str) -> Raw:
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        return await self._send("PATCH", path, query, body=apply_body(body), content_type=_APPLY, counted=("apply", what))

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        *,
        body: Raw | Sequence[Raw] | str | None = None,
        content_type: str = "application/json",
        counted: tuple[str, str],
    ) -> Raw:
        """One request, one answer; ``counted`` as this verb on this kind."""
        what = f"{method} {path}"
        if query:
            path = f"{path}?{urlencode(query)}"
        headers = {"Accept": "application/json", "Content-Type": content_type}
        code = 0
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await self._transport.param_serialize(
                    method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
                )
                answer = await self._transport.call_api(*request, _request_timeout=_DEADLINE)
                content, code = await answer.read(), answer.status
        except TimeoutError as error:
            raise Unavailable(what, status=0, message=f"no answer within {REQUEST_SECONDS:.0f} s") from error
        except aiohttp.ClientError as error:
            raise Unavailable(what, status=0, message=str(error) or type(error).__name__) from error
        finally:
            metrics.API_REQUESTS.labels(*counted, str(code)).inc()
        return _result(what, code, content)


def _result(what: str, status: int, content: bytes) -> Raw:
    try:
        found = _decode(content) if content else {}
    except msgspec.DecodeError:
        found = {"message": content[:200].decode(errors="replace")}
    if not isinstance(found, dict):
        found = {"message": f"an object was wanted, found {type(found).__name__}"}
        status = status if status >= 400 else 500
    if 200 <= status < 300:
        return found
    message = str(found.get("message", ""))
    kind = Forbidden if status == 500 and "calling webhook" in message else _ERRORS.get(status, Unavailable)
    raise kind(what, status=status, reason=str(found.get("reason", "")), message=message)
