"""The errors of the local cluster.

The one job: tell "this machine lacks something" (exit 2, what to do) from "it was tried and failed" (exit 1, log tail).
The invariant kept: each message says what was wanted, what was found and what to do.
"""

from __future__ import annotations


class LocalkubeError(Exception):
    """A cluster could not be started, reached or stopped."""

    exit_code = 1


class MachineError(LocalkubeError):
    """This machine cannot run what was asked for until somebody changes something on it."""

    exit_code = 2
