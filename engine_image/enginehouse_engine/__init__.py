"""The engine: launcher, API server, engine core, executors and model of one replica."""

__version__ = "0.1.0"
