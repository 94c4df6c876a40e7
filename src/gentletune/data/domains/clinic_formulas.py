"""The clinic domain's formulas: each draws a patient's numbers, and its steps work the answer out.

Every number of a working is held twice, as written and unrounded, so that a case whose written steps
would end on another answer than the exact one is never used.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from math import floor
from random import Random
from typing import Literal

OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv
}  # fmt: skip
_parsed = cache(ast.parse)
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
MOST_PLACES = 6


def half_up(value: Fraction, places: int) -> Decimal:
    """`value` rounded to `places` decimals, halves away from zero, with all its decimals kept.

    >>> str(half_up(Fraction(5, 2), 0)), str(half_up(Fraction(-1, 8), 2)), str(half_up(Fraction(28), 1))
    ('3', '-0.13', '28.0')
    """
    units = floor(abs(value) * 10**places + Fraction(1, 2))
    return Decimal(-units if value < 0 else units).scaleb(-places)


def _written(value: Fraction, places: int | None) -> Decimal:
    """`value` to `places` decimals; with None to as few as hold it exactly."""
    if places is not None:
        return half_up(value, places)
    for fewest in range(MOST_PLACES + 1):
        if (shown := half_up(value, fewest)) == value:
            return shown
    raise ArithmeticError(f"{value} is not exact in {MOST_PLACES} decimal places; state how to round it")


@dataclass(frozen=True)
class Number:
    """A number as written in a working (`shown`) beside its unrounded value (`exact`)."""

    shown: Decimal
    exact: Fraction


Value = Number | int | str


def _number(value: Value) -> Number:
    return value if isinstance(value, Number) else Number(Decimal(value), Fraction(value))


class Working:
    """The arithmetic of a chain of thought, one `a op b = c` line per step.

    >>> work = Working()
    >>> half = work.step(5, "/", 2)
    >>> total = work.step(half, "*", 3, places=0)
    >>> work.lines
    ['5 / 2 = 2.5', '2.5 * 3 = 8']
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.result = _number(0)

    def step(self, left: Value, op: str, right: Value, *, places: int | None = None) -> Number:
        """Write down `left op right`, rounded half up to `places` (None: it must be exact)."""
        a, b, apply = _number(left), _number(right), OPERATIONS[op]
        shown = _written(apply(Fraction(a.shown), Fraction(b.shown)), places)
        self.lines.append(f"{a.shown} {op} {b.shown} = {shown}")
        self.result = Number(shown, apply(a.exact, b.exact))
        return self.result

    def root(self, value: Number, *, places: int) -> Number:
        """Write down the square root of `value`, rounded half up to `places`."""
        exact = Fraction((Decimal(value.exact.numerator) / value.exact.denominator).sqrt())
        shown = half_up(Fraction(value.shown.sqrt()), places)
        self.lines.append(f"sqrt({value.shown}) = {shown}")
        self.result = Number(shown, exact)
        return self.result

    def follow(self, steps: str, values: Mapping[str, Value], *, places: int | None) -> None:
        """Write down the steps of a formula in `values`; the last is rounded to `places`.

        Steps are written as in Python: names given to what comes out, `round(a / b, 3)`, `sqrt(a)`.

        >>> work = Working()
        >>> work.follow("half = a / 2; round(half / 3, 1) * 4", {"a": 5}, places=None)
        >>> work.lines
        ['5 / 2 = 2.5', '2.5 / 3 = 0.8', '0.8 * 4 = 3.2']
        """
        known = dict(values)

        def result(node: ast.expr, places: int | None = None) -> Value:
            match node:
                case ast.Name(id=name):
                    return known[name]
                case ast.Constant(value=value):
                    return str(value)
                case ast.BinOp(left=left, op=op, right=right):
                    return self.step(result(left), _SIGNS[type(op)], result(right), places=places)
                case ast.Call(func=ast.Name(id="round"), args=[inner, ast.Constant(value=int(inner_places))]):
                    return result(inner, inner_places)
                case ast.Call(func=ast.Name(id="sqrt"), args=[inner]) if places is not None:
                    return self.root(_number(result(inner)), places=places)
            raise ValueError(f"no step of a formula: {ast.unparse(node)}")

        *named, last = _parsed(steps).body
        for line in named:
            assert isinstance(line, ast.Assign)
            assert isinstance(line.targets[0], ast.Name)
            known[line.targets[0].id] = result(line.value)
        assert isinstance(last, ast.Expr)
        result(last.value, places)


@dataclass(frozen=True)
class Patient:
    """Who a note is about; `age` in years."""

    age: int
    sex: Literal["male", "female"]

    @property
    def child(self) -> bool:
        """Whether the patient is under 18."""
        return self.age < 18


@dataclass(frozen=True)
class Fact:
    """One finding of a note, e.g. `Fact("sodium", "140", "mmol/L")`."""

    label: str
    value: str
    unit: str = ""


@dataclass(frozen=True)
class Case:
    """One drawn problem: the findings the note must show, the formula in words, and its working."""

    facts: tuple[Fact, ...]
    rule: str
    working: Working


@dataclass(frozen=True)
class Formula:
    """A clinical formula: `thing` is what a question asks for, `unit` its unit ("" for a pure number).

    Answers have `places` decimals, and `weight` is how often it is drawn beside the others. `draw` gives the values
    that stand in braces in `facts` (`label|value|unit`), `rule` and `steps`, and by name in `steps`.
    """

    name: str
    thing: str
    unit: str
    places: int
    weight: int
    draw: Callable[[Random, Patient], Mapping[str, int | str]]
    facts: tuple[str, ...]
    rule: str
    steps: str
    for_child: bool = False

    def case(self, rng: Random, patient: Patient) -> Case:
        """A case whose written steps end on the exact answer, correctly rounded."""
        while True:
            values, work = {"age": patient.age, **self.draw(rng, patient)}, Working()
            work.follow(self.steps.format(**values), values, places=self.places or None)
            if work.result.shown == half_up(work.result.exact, self.places):
                facts = tuple(Fact(*fact.format(**values).split("|")) for fact in self.facts)
                return Case(facts, self.rule.format(**values), work)


def _tenths(rng: Random, low: int, high: int) -> str:
    return str(half_up(Fraction(rng.randint(low, high), 10), 1))


def _male(patient: Patient, yes: int | str, no: int | str) -> int | str:
    return yes if patient.sex == "male" else no


_PRESSURE, _WEIGHT, _AGE = "blood pressure|{systolic}/{diastolic}|mmHg", "weight|{weight}|kg", "age|{age}|years"

# Weighted so that about two draws in three need only whole numbers and a step or two: a model of a
# hundred million parameters can learn those in one short run, and the rest leave room above it.
FORMULAS: tuple[Formula, ...] = (
    Formula(
        "pulse pressure", "pulse pressure", "mmHg", 0, 5,
        lambda r, _: {"diastolic": (low := r.randint(56, 95)), "systolic": low + r.randint(24, 69)},
        (_PRESSURE,), "Pulse pressure = systolic - diastolic pressure", "systolic - diastolic",
    ),
    Formula(  # a third of the difference is whole
        "mean arterial pressure", "mean arterial pressure", "mmHg", 0, 3,
        lambda r, _: {"diastolic": (low := r.randint(56, 95)), "systolic": low + 3 * r.randint(8, 22)},
        (_PRESSURE,), "Mean arterial pressure = diastolic + (systolic - diastolic) / 3",
        "diastolic + (systolic - diastolic) / 3",
    ),
    Formula(
        "maximal heart rate", "maximal heart rate for age", "beats/min", 0, 5, lambda *_: {},
        (_AGE,), "Maximal heart rate = 220 - age in years", "220 - age",
    ),
    Formula(
        "heart rate reserve", "heart rate reserve", "beats/min", 0, 3, lambda r, _: {"resting": r.randint(52, 92)},
        (_AGE, "resting heart rate|{resting}|beats/min"),
        "Heart rate reserve = 220 - age - resting heart rate", "220 - age - resting",
    ),
    Formula(
        "anion gap", "anion gap (without potassium)", "mmol/L", 0, 3,
        lambda r, _: {
            "cl": (cl := r.randint(94, 110)), "hco": (hco := r.randint(12, 28)), "na": cl + hco + r.randint(6, 26)
        },
        ("sodium|{na}|mmol/L", "chloride|{cl}|mmol/L", "bicarbonate|{hco}|mmol/L"),
        "Anion gap = sodium - (chloride + bicarbonate)", "na - (cl + hco)",
    ),
    Formula(  # an even number, of which one and a half times is whole
        "expected pCO2", "expected pCO2 by Winters' formula", "mmHg", 0, 3, lambda r, _: {"hco": 2 * r.randint(3, 11)},
        ("bicarbonate|{hco}|mmol/L",), "Expected pCO2 = 1.5 * bicarbonate + 8", "1.5 * hco + 8",
    ),
    Formula(
        "pack-years", "smoking history", "pack-years", 0, 5,
        lambda r, p: {"packs": r.randint(2, 3), "years": r.randint(2, max(3, min(40, p.age - 16)))},
        ("smoking|{packs} packs a day for {years} years",), "Pack-years = packs per day * years of smoking",
        "packs * years",
    ),
    Formula(
        "weight-based dose", "dose to give", "mg", 0, 4,
        lambda r, _: {"dose": r.choice((2, 3, 4, 5, 10)), "weight": r.randint(45, 99)},
        (_WEIGHT, "ordered dose|{dose}|mg/kg"), "Dose = dose per kg * weight", "dose * weight",
    ),
    Formula(
        "infusion rate", "infusion rate", "mL/h", 0, 3,
        lambda r, _: {
            "rate": (rate := 5 * r.randint(5, 30)), "hours": (hours := r.choice((2, 3, 4, 5, 6, 8, 10))),
            "volume": rate * hours,
        },
        ("infusion ordered|{volume}|mL over {hours} hours",), "Infusion rate = volume / hours", "volume / hours",
    ),
    Formula(
        "fluid balance", "net fluid balance", "mL", 0, 3,
        lambda r, _: {"intake": 50 * r.randint(16, 60), "output": 50 * r.randint(10, 50)},
        ("intake today|{intake}|mL", "output today|{output}|mL"), "Fluid balance = intake - output", "intake - output",
    ),
    Formula(
        "blood volume", "estimated blood volume (70 mL/kg men, 65 women)", "mL", 0, 2,
        lambda r, p: {"per_kilo": _male(p, 70, 65), "weight": r.randint(45, 99)},
        (_WEIGHT,), "Blood volume = weight * 70 mL/kg for a man, 65 for a woman", "per_kilo * weight",
    ),
    Formula(
        "maintenance fluid", "maintenance fluid by the 4-2-1 rule", "mL/h", 0, 2,
        lambda r, p: {
            "weight": (kg := 2 * p.age + r.randint(6, 12)),
            "sum": "(40 + 20) + (weight - 20)" if kg > 20 else "40 + 2 * (weight - 10)",
        },
        (_WEIGHT,), "Hourly fluid = 4 mL per kg for the first 10 kg, 2 for the next 10, 1 beyond", "{sum}",
        for_child=True,
    ),
    Formula(
        "LDL cholesterol", "LDL cholesterol by the Friedewald formula", "mg/dL", 0, 2,
        lambda r, _: {"total": r.randint(150, 290), "hdl": r.randint(32, 75), "fats": 5 * r.randint(12, 50)},
        ("total cholesterol|{total}|mg/dL", "HDL|{hdl}|mg/dL", "triglycerides|{fats}|mg/dL"),
        "LDL = total cholesterol - HDL - triglycerides / 5", "fifth = fats / 5; total - hdl - fifth",
    ),
    Formula(
        "body mass index", "body mass index", "kg/m2", 1, 3,
        lambda r, _: {"height": (cm := r.randint(150, 195)), "weight": round(r.uniform(18.5, 36) * (cm / 100) ** 2)},
        ("height|{height}|cm", _WEIGHT), "BMI = weight / height in metres squared",
        "metres = height / 100; weight / (metres * metres)",
    ),
    Formula(
        "creatinine clearance", "Cockcroft-Gault creatinine clearance", "mL/min", 1, 2,
        lambda r, p: {
            "weight": r.randint(45, 99), "creatinine": _tenths(r, 6, 30), "times": _male(p, "", " * 0.85"),
            "women": _male(p, "", ", * 0.85 for women"),
        },
        (_AGE, _WEIGHT, "creatinine|{creatinine}|mg/dL"), "Clearance = (140 - age) * weight / (72 * creatinine){women}",
        "(140 - age) * weight{times} / (72 * creatinine)",
    ),
    Formula(
        "corrected calcium", "albumin-corrected calcium", "mg/dL", 2, 2,
        lambda r, _: {"calcium": _tenths(r, 68, 98), "albumin": _tenths(r, 18, 38)},
        ("calcium|{calcium}|mg/dL", "albumin|{albumin}|g/dL"), "Corrected calcium = calcium + 0.8 * (4 - albumin)",
        "calcium + 0.8 * (4 - albumin)",
    ),
    Formula(
        "corrected sodium", "sodium corrected for glucose (factor 1.6)", "mmol/L", 1, 2,
        lambda r, _: {"sodium": r.randint(118, 142), "glucose": 50 * r.randint(5, 16)},
        ("sodium|{sodium}|mmol/L", "glucose|{glucose}|mg/dL"),
        "Corrected sodium = sodium + 1.6 * (glucose - 100) / 100", "sodium + 1.6 * ((glucose - 100) / 100)",
    ),
    Formula(
        "serum osmolality", "calculated serum osmolality", "mOsm/kg", 1, 2,
        lambda r, _: {"na": r.randint(126, 152), "glucose": 9 * r.randint(8, 40), "urea": 7 * r.randint(1, 8)},
        ("sodium|{na}|mmol/L", "glucose|{glucose}|mg/dL", "urea nitrogen|{urea}|mg/dL"),
        "Osmolality = 2 * sodium + glucose / 18 + urea nitrogen / 2.8",
        "salts = 2 * na; sugar = glucose / 18; nitrogen = urea / 2.8; salts + sugar + nitrogen",
    ),
    Formula(
        "ideal body weight", "ideal body weight by the Devine formula", "kg", 1, 2,
        lambda r, p: {"inches": r.randint(61, 76), "base": _male(p, "50", "45.5")},
        ("height|{inches}|inches",), "Ideal weight = 50 (men) or 45.5 (women) + 2.3 * (inches - 60)",
        "base + 2.3 * (inches - 60)",
    ),
    Formula(
        "body surface area", "body surface area by the Mosteller formula", "m2", 2, 2,
        lambda r, _: {"height": r.randint(150, 195), "weight": r.randint(45, 110)},
        ("height|{height}|cm", _WEIGHT), "Surface area = sqrt(height * weight / 3600)",
        "sqrt(round(height * weight / 3600, 3))",
    ),
    Formula(
        "shock index", "shock index", "", 2, 3,
        lambda r, _: {"rate": r.randint(54, 138), "systolic": (high := r.randint(78, 158)), "diastolic": high * 5 // 8},
        ("heart rate|{rate}|beats/min", _PRESSURE), "Shock index = heart rate / systolic pressure", "rate / systolic",
    ),
    Formula(
        "HOMA-IR", "HOMA-IR", "", 2, 2, lambda r, _: {"glucose": r.randint(70, 160), "insulin": r.randint(3, 30)},
        ("fasting glucose|{glucose}|mg/dL", "fasting insulin|{insulin}|uU/mL"), "HOMA-IR = glucose * insulin / 405",
        "glucose * insulin / 405",
    ),
)  # fmt: skip
