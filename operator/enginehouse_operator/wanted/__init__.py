"""What shall exist: manifests as pure functions of the engine, the replica and the operator's settings."""
