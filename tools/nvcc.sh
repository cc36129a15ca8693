#!/usr/bin/env bash
# Installs nvcc 13.0 in .cuda for the feature `cuda`, unless it is there, or CUDA_HOME or the PATH has one. Needs pip, no
# GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl)

if [ ! -x "${CUDA_HOME:-}/bin/nvcc" ] && ! command -v nvcc >/dev/null && [ ! -f .cuda/complete ]; then
    echo "installing nvcc in .cuda" >&2
    rm -rf .cuda
    "${PYTHON:-python3}" -m pip install --quiet --target .cuda "${packages[@]/%/==13.0.*}" >&2
    touch .cuda/complete
fi
