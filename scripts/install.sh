#!/usr/bin/env bash
# install.sh EXTRA GROUPS: install this clone, editable, into the virtual environment $VENV (default .venv).
#   EXTRA    cpu or gpu: the builds of ONNX Runtime and torch
#   GROUPS   further extras, comma-separated: serve, import, grpc, telemetry, train, dev, ray. With cpu, only train installs torch.
#
# It says what it installs; in a terminal pip shows its downloads as well.
#
# pip alone would install torch with CUDA on Linux (gigabytes). The CPU build has the local version +cpu, which comes from
# the configured index if it has it, else from PyTorch's own.
set -euo pipefail
extra=${1:?"expected cpu or gpu"} groups=${2:?"expected extras, such as serve or serve,train"}
venv=${VENV:-.venv}
torch=${TORCH_VERSION:-2.13.0}
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "msmlp needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=python3.x" >&2
    exit 2
}
say() { echo "msmlp: $*" >&2; }
if [ ! -x "$venv/bin/python" ]; then
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        say "$venv exists and is not a virtual environment: remove it, or set VENV to another folder"
        exit 2
    fi
    say "making the virtual environment $venv"
    # Half of one must not stay: the next run would take it for a working one.
    trap 'rm -rf "$venv"' EXIT
    "$python" -m venv "$venv" || {
        say "$python cannot make a virtual environment (on Debian: apt install python3-venv)"
        exit 2
    }
    trap - EXIT
fi
rm -f "$venv"/.serve-* "$venv"/.dev-* "$venv"/.ray-* # make's marks of what is installed, which is about to change
quiet=--quiet
[ ! -t 1 ] || quiet=""
pip() { "$venv/bin/python" -m pip --disable-pip-version-check $quiet "$@"; }

# Either build satisfies the requirement, so switching needs an uninstall.
if [ "$extra" = gpu ] && "$venv/bin/python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' 2>/dev/null
then
    pip uninstall --yes torch
fi
# The two builds of ONNX Runtime share a module folder, so the other one is removed first.
other=$([ "$extra" = gpu ] && echo onnxruntime || echo onnxruntime-gpu)
if "$venv/bin/python" -m pip --disable-pip-version-check show --quiet "$other" 2>/dev/null; then
    pip uninstall --yes "$other"
fi
if [ "$extra" = cpu ] && [[ ",$groups," = *,train,* ]] && [ "$(uname -s)" = Linux ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    say "installing torch $torch for CPUs, which can take a few minutes"
    pip install "torch==$torch+cpu" 2>/dev/null || pip install "torch==$torch" --index-url "$cpu_index"
fi
[ "$extra" = gpu ] && size="; its libraries for GPUs take gigabytes and minutes" || size=""
say "installing msmlp with the extras $extra,$groups$size"
pip install --editable ".[$extra,$groups]"
say "done: activate it with . $venv/bin/activate"
