# Sourced by the scripts beside it: the virtual environment of this clone, made if there is none.
#
#   prepare_environment EXTRAS     installs `-e .EXTRAS`, and sets $venv_python
#
# PYTHON=... chooses the interpreter (3.11 or later), VENV=... the folder (.venv).

prepare_environment() {
  local extras=$1 venv=${VENV:-.venv} stamp wanted
  venv_python=$venv/bin/python
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  # An environment with the developers' tools serves the quickstart as well.
  for stamp in "$venv/.installed$extras" "$venv/.installed[dev]"; do
    if [ -x "$venv_python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  done

  local python log=$venv/install.log
  if [ ! -x "$venv_python" ]; then
    if [ -e "$venv" ]; then
      echo "error: $venv is there, but $venv_python does not run; remove it, or choose another" \
        "folder: VENV=..." >&2
      exit 1
    fi
    python=$(find_python) || exit 1
    echo "making $venv with $("$python" --version) (once; about a minute)" >&2
    if command -v uv >/dev/null; then
      uv venv --quiet --no-python-downloads --python "$python" "$venv"
    elif ! "$python" -m venv "$venv" >&2; then
      rm -rf "$venv" # a part of one, made just now
      echo "error: $python cannot make virtual environments; install its venv module" \
        "(Debian: python3-venv) or uv" >&2
      exit 1
    fi
  fi
  local install=("$venv_python" -m pip install --disable-pip-version-check)
  if command -v uv >/dev/null; then install=(uv pip install --python "$venv_python"); fi
  # The pinned versions have wheels for these; a later Python resolves for itself.
  local pins=()
  if "$venv_python" -c 'import sys; sys.exit(sys.version_info >= (3, 14))'; then
    pins=(--constraint constraints.txt)
  fi
  if ! "${install[@]}" ${pins[@]+"${pins[@]}"} --editable ".$extras" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "error: the installation failed; all of it is in $log" >&2
    exit 1
  fi
  echo "$wanted" >"$venv/.installed$extras"
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or later among: ${PYTHON:-python3 python3.14 ... python3.11}" \
    "; install one, or name it: PYTHON=/path/to/python $0" >&2
  return 1
}
