"""Which packages a machine lacks that gentletune and its tests take, to be carried there as wheels.

    python -m pip freeze > there.txt               # on that machine
    python benchmarks/lacking.py there.txt         # here: a line a package, for pip download --no-deps -r

What is asked for follows from pyproject.toml, and what that asks for in turn from the packages installed here.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("gpu", "quant")
TESTS = ("pytest", "pytest-xdist", "hypothesis")


def here() -> list[str]:
    """What this machine lacks, as far as its own packages tell."""
    return lacking({canonicalize_name(d.metadata["Name"]): d.version for d in distributions()})


def lacking(installed: Mapping[str, str]) -> list[str]:
    """Requirements that `installed` (version by name) does not meet, and theirs, each as `name==version` if known here.

    >>> lacking({canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}) == here()
    True
    """
    todo, seen, found = _asked(), set[str](), dict[str, str]()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        met = name in installed and requirement.specifier.contains(installed[name], prereleases=True)
        if not met:
            found[name] = _pinned(requirement)
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if met or key in seen:
            continue
        seen.add(key)
        todo += _of(requirement)
    return [found[name] for name in sorted(found)]


def _asked() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    return [Requirement(text) for text in (*project["dependencies"], *extras, *TESTS)]


def _pinned(requirement: Requirement) -> str:
    try:
        return f"{requirement.name}=={version(requirement.name).partition('+')[0]}"
    except PackageNotFoundError:
        return str(requirement)


def _of(requirement: Requirement) -> list[Requirement]:
    """What a package installed here asks for, with the extras asked of it."""
    try:
        texts = requires(requirement.name) or []
    except PackageNotFoundError:
        return []
    wanted = [Requirement(text) for text in texts]
    extras = requirement.extras or {""}
    found = [one for one in wanted if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras)]
    for one in found:
        one.marker = None
    return found


if __name__ == "__main__":
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==", 1) for line in lines if "==" in line)
    print("\n".join(lacking({canonicalize_name(name.strip()): number.strip() for name, number in pairs})))
