#!/usr/bin/env bash
# install.sh SERVER TARGET: installs a server's pinned packages and Tidegate into a virtual environment.
# Image builds run it, and so does tools/check_images.py, so that both have the same files. For the language model,
# TORCH names the file with PyTorch: requirements/torch-cpu.txt (the default; TORCH_INDEX is then the index
# of PyTorch's CPU wheels) or requirements/torch-cuda.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
server=$1 target=$2

"${PYTHON:-python3.11}" -m venv "$target"
pip=("$target/bin/python" -m pip --disable-pip-version-check install --quiet --no-cache-dir --no-compile)
"${pip[@]}" --no-deps -r "deploy/$server/requirements.txt"
if [ "$server" = llm ]; then
  "${pip[@]}" --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "${TORCH:-requirements/torch-cpu.txt}"
fi
"${pip[@]}" --no-deps .
if [ "$server" = router ]; then
  # xds-protos overwrites files of other packages; see docs/decisions/0005-xds-protos-last.md.
  "$target/bin/python" tools/restore_packages.py
fi
# The image's root is read only, so Python could not keep what it compiles.
# Some packages have files for newer Pythons, which do not compile.
"$target/bin/python" -m compileall -qq "$target/lib" || true
"$target/bin/python" -m pip --disable-pip-version-check uninstall --quiet --yes pip
