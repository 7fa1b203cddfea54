"""The API server that the tests of this folder share with others, and the chart as helm renders it for that server."""

from api_cluster import api_client, api_cluster, namespace, with_foreign_kinds
from rendered_chart import render

__all__ = ["api_client", "api_cluster", "namespace", "render", "with_foreign_kinds"]
