#!/usr/bin/env bash
# Writes the lock files: versions and hashes only, never an index host. Run after a change of pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
         --no-emit-find-links --no-annotate pyproject.toml "$@"; }
lock --extra operator --extra engine --extra ray --extra dev --output-file locks/dev.txt
lock --extra operator --constraint locks/dev.txt --output-file locks/operator.txt
lock --extra engine --extra ray --constraint locks/dev.txt --output-file locks/engine.txt
echo uv | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
    --no-annotate - --output-file locks/uv.txt
