#!/usr/bin/env bash
# Install the lowest versions that pyproject.toml allows into an environment of their own, and run tests that touch each of them.
# torch is that of constraints.txt, since older CPU builds are not on every index.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(realpath "${UV:-.venv/bin/uv}")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/env"
python="$place/env/bin/python"
"$python" -m pip install -qq --disable-pip-version-check -c constraints.txt torch
echo "torch==$("$python" -c 'from importlib.metadata import version; print(version("torch"))')" > "$place/torch.txt"
"$uv" pip install -q --python "$python" --resolution lowest-direct --override "$place/torch.txt" -e '.[dev]'
"$uv" pip freeze --python "$python" | grep -iE '^(transformers|trl|peft|lm-eval|datasets|numpy|scipy|pandas|pydantic|typer|optuna|plotly|matplotlib)=='
"$python" -m pytest -n "${WORKERS:-2}" --dist loadfile -p no:cacheprovider \
  tests/core tests/cli/test_cli.py tests/reporting/test_report.py tests/reporting/test_figures.py tests/inspection/test_page.py \
  tests/evaluation/test_coder.py tests/evaluation/test_scoring.py tests/evaluation/harness tests/stats/test_compare.py \
  tests/methods/test_adapters.py tests/training/test_drop_in.py tests/training/test_optimizers.py tests/runs/test_run.py \
  tests/sweeps/test_sweep.py
