"""The embedded tiny base model, its skills and its domain: a model and a data source like any other."""

from gentletune.lab.domain import Knobs, lab_domain
from gentletune.lab.skills import SKILLS, Skill, skill_examples

__all__ = ["SKILLS", "Knobs", "Skill", "lab_domain", "skill_examples"]
