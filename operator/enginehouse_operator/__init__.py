"""The operator: turns one InferenceEngine into replicas, members and their rights, and reports what became of them."""

__version__ = "0.1.0"
