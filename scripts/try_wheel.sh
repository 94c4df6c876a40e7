#!/usr/bin/env bash
# Install a wheel into an empty environment, away from the repository, and use it: version, help, two steps on a file, the report.
set -euo pipefail
wheel=$(realpath "$1")
constraints=$(realpath "$(dirname "$0")/../constraints.txt")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/env"
"$place/env/bin/python" -m pip install -qq --disable-pip-version-check -c "$constraints" torch
"$place/env/bin/python" -m pip install -qq --disable-pip-version-check -c "$constraints" "$wheel"
cd "$place"
PATH="$place/env/bin:$PATH"
unset PYTHONPATH
gentletune --version
gentletune --help >/dev/null
python - <<'PYTHON'
import json
with open("mine.jsonl", "w") as file:
    for n in range(40):
        file.write(json.dumps({"prompt": f"add {n} 5", "completion": str(n + 5)}) + "\n")
PYTHON
gentletune train --model lab --data mine.jsonl --lr 1e-4 --max-steps 2 --test-rows 8 --domain-tokens 8 --tasks lab_add --general-rows 8 --output runs/a
gentletune report runs/a --output page
test -s runs/a/model/model.safetensors && test -s page/report.html
echo "the wheel works"
