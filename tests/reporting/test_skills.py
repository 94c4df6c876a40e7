"""That a run's scores say which skills they are of, from training to the findings."""

from __future__ import annotations

from pathlib import Path

from gentletune import recommend, train
from tests.helpers import tiny_recipe


def test_arithmetic_beside_the_clinic_domain_is_shown_and_is_no_general_skill(tiny_dir: Path, tmp_path: Path) -> None:
    record = train(tiny_recipe(tiny_dir, tmp_path / "run"))
    for scores in (record.scores, record.base_scores):
        assert {s.key: s.skills for s in scores if s.skills} == {
            "clinic/accuracy": ("arithmetic",),
            "clinic/bits_per_token": ("arithmetic",),
            "clinic/bits_per_byte": ("arithmetic",),
            "arithmetic/accuracy": ("arithmetic",),
            "instructions/accuracy": ("instructions",),
        }
    found = recommend([record])
    assert found.overlapping == ("arithmetic/accuracy",)
    assert found.general_axis != "arithmetic/accuracy"
