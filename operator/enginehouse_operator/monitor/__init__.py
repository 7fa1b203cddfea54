"""The monitor: the sidecar that learns of every death in its pod through pipes and writes the pod's row.

Standard library only, and nothing of the operator but how a log record looks and how an apply is spelled: it runs beside every
engine and has to be small.
"""
