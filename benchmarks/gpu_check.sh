#!/usr/bin/env bash
# Checks this machine's GPUs and writes the figures to a Markdown file: bash benchmarks/gpu_check.sh [REPORT] [FLAGS]
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu_check --report "${1:-out/gpu_check.md}" "${@:2}"
