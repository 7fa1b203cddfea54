"""The API server that the tests of this folder share with others."""

from api_cluster import api_client, api_cluster, namespace, with_foreign_kinds
from monitored_replica import world

__all__ = ["api_client", "api_cluster", "namespace", "with_foreign_kinds", "world"]
