#!/usr/bin/env bash
# install.sh EXTRA GROUPS: put the package into the virtual environment $VENV (default .venv), editable.
#   EXTRA    cpu or gpu: which builds of ONNX Runtime and torch
#   GROUPS   other extras, comma-separated, e.g. serve or serve,train,dev; on a CPU only train brings torch
#
# Why not pip alone: on Linux the package index's torch brings CUDA along (gigabytes). The CPU build has a local version
# (+cpu), which pip takes when it can find one; where it cannot, PyTorch's own index of CPU builds has it.
set -euo pipefail
extra=$1 groups=$2
venv=${VENV:-.venv}
torch=${TORCH_VERSION:-2.13.0}
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "msmlp needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=python3.x" >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
    rm -rf "$venv" # half made, it would be taken for whole the next time
    echo "msmlp: $python cannot make a virtual environment (on Debian: apt install python3-venv)" >&2
    exit 2
}
rm -f "$venv"/.serve-* "$venv"/.dev-* # make marks what is in there; that is about to change
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

# Either build satisfies the requirement, so changing from one to the other takes an uninstall.
if [ "$extra" = gpu ] && "$venv/bin/python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' 2>/dev/null
then
    pip uninstall --yes torch
fi
# The two builds of ONNX Runtime share one module folder: the other one has to go first.
other=$([ "$extra" = gpu ] && echo onnxruntime || echo onnxruntime-gpu)
if "$venv/bin/python" -m pip --disable-pip-version-check show --quiet "$other" 2>/dev/null; then
    pip uninstall --yes "$other"
fi
if [ "$extra" = cpu ] && [[ ",$groups," = *,train,* ]] && [ "$(uname -s)" = Linux ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    pip install "torch==$torch+cpu" 2>/dev/null || pip install "torch==$torch" --index-url "$cpu_index"
fi
pip install --editable ".[$extra,$groups]"
