#!/bin/sh
# Starts the backend as LocalAI's scripts do: with the Python of its own folder, in place of this shell, so that whoever
# has started the script is the parent that the backend watches.
set -e
backend_dir=$(dirname "$0")
exec "$backend_dir/venv/bin/python" "$backend_dir/backend.py" "$@"
