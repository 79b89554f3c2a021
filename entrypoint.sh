#!/bin/sh
# The image takes the program's own words: `train`, `generate --prompt …`, `checkpoints list`.
# No word, or a flag first (`--total_steps 60`), means `train`.
#
# `exec` puts Python in the place of this shell, so that signals reach it.
set -eu

# Downloads and compiled kernels outlive the container on the data volume. Where that cannot be
# written the libraries fall back to /tmp: torch makes its folder on import, and fails if it can't.
cache=${DATA_DIR:-/data}/cache
if mkdir -p "$cache/inductor" 2>/dev/null && [ -w "$cache/inductor" ]; then
  export HF_HOME="${HF_HOME:-$cache/huggingface}"
  export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}"
  export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$cache/triton}"
fi

case "${1:-}" in
  -h | --help) ;;
  '' | -*) set -- train "$@" ;;
esac
exec python -m app "$@"
