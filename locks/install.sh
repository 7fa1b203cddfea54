#!/usr/bin/env bash
# Makes a virtual environment from the lock files: install.sh PYTHON TARGET. Safe to run again after an interruption.
set -euo pipefail
python=$1 target=$2
cd "$(dirname "$0")"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "wanted: Python 3.11 or newer; found: $("$python" --version); do: make PYTHON=python3.12 setup" >&2; exit 2; }
"$python" -m venv --clear "$target" || { echo "could not make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }
"$target/bin/pip" install --quiet --require-hashes -r uv.txt
"$target/bin/uv" pip install --quiet --python "$target/bin/python" --require-hashes -r dev.txt
