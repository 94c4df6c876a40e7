"""The clinic domain's formulas: each draws a patient's numbers and works the answer out step by step.

Every number of a working is held twice, as written and unrounded, so that a case whose written steps
would end on another answer than the exact one is never used.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor
from random import Random
from typing import Literal

OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
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


def _number(value: Number | int | str) -> Number:
    return value if isinstance(value, Number) else Number(Decimal(value), Fraction(value))


class Working:
    """The arithmetic of a chain of thought, one `a op b = c` line a step.

    >>> work = Working()
    >>> half = work.step(5, "/", 2)
    >>> total = work.step(half, "*", 3, places=0)
    >>> work.lines
    ['5 / 2 = 2.5', '2.5 * 3 = 8']
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.result = _number(0)

    def step(
        self, left: Number | int | str, op: str, right: Number | int | str, *, places: int | None = None
    ) -> Number:
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

    Answers have `places` decimals, and `weight` is how often it is drawn beside the others.
    """

    name: str
    thing: str
    unit: str
    places: int
    weight: int
    draw: Callable[[Random, Patient], Case]
    for_child: bool = False

    def case(self, rng: Random, patient: Patient) -> Case:
        """A case whose written steps end on the exact answer, correctly rounded."""
        while True:
            case = self.draw(rng, patient)
            if case.working.result.shown == half_up(case.working.result.exact, self.places):
                return case


def _pressure(systolic: int, diastolic: int) -> Fact:
    return Fact("blood pressure", f"{systolic}/{diastolic}", "mmHg")


def _weight(kilograms: int) -> Fact:
    return Fact("weight", str(kilograms), "kg")


def _pulse_pressure(rng: Random, _: Patient) -> Case:
    diastolic = rng.randint(56, 95)
    systolic = diastolic + rng.randint(24, 69)
    work = Working()
    work.step(systolic, "-", diastolic)
    return Case((_pressure(systolic, diastolic),), "Pulse pressure = systolic - diastolic pressure", work)


def _mean_pressure(rng: Random, _: Patient) -> Case:
    diastolic = rng.randint(56, 95)
    systolic = diastolic + 3 * rng.randint(8, 22)  # a third of the difference is then whole
    work = Working()
    third = work.step(work.step(systolic, "-", diastolic), "/", 3)
    work.step(diastolic, "+", third)
    rule = "Mean arterial pressure = diastolic + (systolic - diastolic) / 3"
    return Case((_pressure(systolic, diastolic),), rule, work)


def _maximal_rate(_: Random, patient: Patient) -> Case:
    work = Working()
    work.step(220, "-", patient.age)
    return Case((Fact("age", str(patient.age), "years"),), "Maximal heart rate = 220 - age in years", work)


def _rate_reserve(rng: Random, patient: Patient) -> Case:
    resting = rng.randint(52, 92)
    work = Working()
    work.step(work.step(220, "-", patient.age), "-", resting)
    facts = (Fact("age", str(patient.age), "years"), Fact("resting heart rate", str(resting), "beats/min"))
    return Case(facts, "Heart rate reserve = 220 - age - resting heart rate", work)


def _anion_gap(rng: Random, _: Patient) -> Case:
    chloride, bicarbonate = rng.randint(94, 110), rng.randint(12, 28)
    sodium = chloride + bicarbonate + rng.randint(6, 26)
    work = Working()
    work.step(sodium, "-", work.step(chloride, "+", bicarbonate))
    measured = (("sodium", sodium), ("chloride", chloride), ("bicarbonate", bicarbonate))
    facts = tuple(Fact(label, str(value), "mmol/L") for label, value in measured)
    return Case(facts, "Anion gap = sodium - (chloride + bicarbonate)", work)


def _winters(rng: Random, _: Patient) -> Case:
    bicarbonate = 2 * rng.randint(3, 11)  # even, so that one and a half times it is whole
    work = Working()
    work.step(work.step("1.5", "*", bicarbonate), "+", 8)
    return Case((Fact("bicarbonate", str(bicarbonate), "mmol/L"),), "Expected pCO2 = 1.5 * bicarbonate + 8", work)


def _pack_years(rng: Random, patient: Patient) -> Case:
    packs, years = rng.randint(2, 3), rng.randint(2, max(3, min(40, patient.age - 16)))
    work = Working()
    work.step(packs, "*", years)
    facts = (Fact("smoking", f"{packs} packs a day for {years} years"),)
    return Case(facts, "Pack-years = packs per day * years of smoking", work)


def _dose(rng: Random, _: Patient) -> Case:
    per_kilo, weight = rng.choice((2, 3, 4, 5, 10)), rng.randint(45, 99)
    work = Working()
    work.step(per_kilo, "*", weight)
    facts = (_weight(weight), Fact("ordered dose", str(per_kilo), "mg/kg"))
    return Case(facts, "Dose = dose per kg * weight", work)


def _infusion_rate(rng: Random, _: Patient) -> Case:
    rate, hours = 5 * rng.randint(5, 30), rng.choice((2, 3, 4, 5, 6, 8, 10))
    work = Working()
    work.step(rate * hours, "/", hours)
    facts = (Fact("infusion ordered", str(rate * hours), f"mL over {hours} hours"),)
    return Case(facts, "Infusion rate = volume / hours", work)


def _fluid_balance(rng: Random, _: Patient) -> Case:
    intake, output = 50 * rng.randint(16, 60), 50 * rng.randint(10, 50)
    work = Working()
    work.step(intake, "-", output)
    facts = (Fact("intake today", str(intake), "mL"), Fact("output today", str(output), "mL"))
    return Case(facts, "Fluid balance = intake - output", work)


def _blood_volume(rng: Random, patient: Patient) -> Case:
    per_kilo, weight = (70 if patient.sex == "male" else 65), rng.randint(45, 99)
    work = Working()
    work.step(per_kilo, "*", weight)
    return Case((_weight(weight),), "Blood volume = weight * 70 mL/kg for a man, 65 for a woman", work)


def _maintenance(rng: Random, patient: Patient) -> Case:
    weight = 2 * patient.age + rng.randint(6, 12)
    work = Working()
    if weight > 20:
        work.step(work.step(40, "+", 20), "+", work.step(weight, "-", 20))
    else:
        work.step(40, "+", work.step(2, "*", work.step(weight, "-", 10)))
    rule = "Hourly fluid = 4 mL per kg for the first 10 kg, 2 for the next 10, 1 beyond"
    return Case((_weight(weight),), rule, work)


def _friedewald(rng: Random, _: Patient) -> Case:
    total, hdl, triglycerides = rng.randint(150, 290), rng.randint(32, 75), 5 * rng.randint(12, 50)
    work = Working()
    fifth = work.step(triglycerides, "/", 5)
    work.step(work.step(total, "-", hdl), "-", fifth)
    measured = (("total cholesterol", total), ("HDL", hdl), ("triglycerides", triglycerides))
    facts = tuple(Fact(label, str(value), "mg/dL") for label, value in measured)
    return Case(facts, "LDL = total cholesterol - HDL - triglycerides / 5", work)


def _body_mass_index(rng: Random, _: Patient) -> Case:
    height = rng.randint(150, 195)
    weight = round(rng.uniform(18.5, 36) * (height / 100) ** 2)
    work = Working()
    metres = work.step(height, "/", 100)
    work.step(weight, "/", work.step(metres, "*", metres), places=1)
    return Case((Fact("height", str(height), "cm"), _weight(weight)), "BMI = weight / height in metres squared", work)


def _clearance(rng: Random, patient: Patient) -> Case:
    weight, creatinine = rng.randint(45, 99), half_up(Fraction(rng.randint(6, 30), 10), 1)
    work = Working()
    above = work.step(work.step(140, "-", patient.age), "*", weight)
    rule = "Clearance = (140 - age) * weight / (72 * creatinine)"
    if patient.sex == "female":
        above = work.step(above, "*", "0.85")
        rule += ", * 0.85 for women"
    work.step(above, "/", work.step(72, "*", str(creatinine)), places=1)
    facts = (
        Fact("age", str(patient.age), "years"),
        _weight(weight),
        Fact("creatinine", str(creatinine), "mg/dL"),
    )
    return Case(facts, rule, work)


def _corrected_calcium(rng: Random, _: Patient) -> Case:
    calcium, albumin = (half_up(Fraction(rng.randint(*ends), 10), 1) for ends in ((68, 98), (18, 38)))
    work = Working()
    work.step(str(calcium), "+", work.step("0.8", "*", work.step(4, "-", str(albumin))), places=2)
    facts = (Fact("calcium", str(calcium), "mg/dL"), Fact("albumin", str(albumin), "g/dL"))
    return Case(facts, "Corrected calcium = calcium + 0.8 * (4 - albumin)", work)


def _corrected_sodium(rng: Random, _: Patient) -> Case:
    sodium, glucose = rng.randint(118, 142), 50 * rng.randint(5, 16)
    work = Working()
    hundreds = work.step(work.step(glucose, "-", 100), "/", 100)
    work.step(sodium, "+", work.step("1.6", "*", hundreds), places=1)
    facts = (Fact("sodium", str(sodium), "mmol/L"), Fact("glucose", str(glucose), "mg/dL"))
    return Case(facts, "Corrected sodium = sodium + 1.6 * (glucose - 100) / 100", work)


def _osmolality(rng: Random, _: Patient) -> Case:
    sodium, glucose, urea = rng.randint(126, 152), 9 * rng.randint(8, 40), 7 * rng.randint(1, 8)
    work = Working()
    salts, sugar, nitrogen = (
        work.step(2, "*", sodium),
        work.step(glucose, "/", 18),
        work.step(urea, "/", "2.8"),
    )
    work.step(work.step(salts, "+", sugar), "+", nitrogen, places=1)
    facts = (
        Fact("sodium", str(sodium), "mmol/L"),
        Fact("glucose", str(glucose), "mg/dL"),
        Fact("urea nitrogen", str(urea), "mg/dL"),
    )
    return Case(facts, "Osmolality = 2 * sodium + glucose / 18 + urea nitrogen / 2.8", work)


def _ideal_weight(rng: Random, patient: Patient) -> Case:
    inches, base = rng.randint(61, 76), "50" if patient.sex == "male" else "45.5"
    work = Working()
    work.step(base, "+", work.step("2.3", "*", work.step(inches, "-", 60)), places=1)
    rule = "Ideal weight = 50 (men) or 45.5 (women) + 2.3 * (inches - 60)"
    return Case((Fact("height", str(inches), "inches"),), rule, work)


def _surface_area(rng: Random, _: Patient) -> Case:
    height, weight = rng.randint(150, 195), rng.randint(45, 110)
    work = Working()
    work.root(work.step(work.step(height, "*", weight), "/", 3600, places=3), places=2)
    facts = (Fact("height", str(height), "cm"), _weight(weight))
    return Case(facts, "Surface area = sqrt(height * weight / 3600)", work)


def _shock_index(rng: Random, _: Patient) -> Case:
    rate, systolic = rng.randint(54, 138), rng.randint(78, 158)
    work = Working()
    work.step(rate, "/", systolic, places=2)
    facts = (
        Fact("heart rate", str(rate), "beats/min"),
        _pressure(systolic, systolic * 5 // 8),
    )
    return Case(facts, "Shock index = heart rate / systolic pressure", work)


def _homa(rng: Random, _: Patient) -> Case:
    glucose, insulin = rng.randint(70, 160), rng.randint(3, 30)
    work = Working()
    work.step(work.step(glucose, "*", insulin), "/", 405, places=2)
    facts = (Fact("fasting glucose", str(glucose), "mg/dL"), Fact("fasting insulin", str(insulin), "uU/mL"))
    return Case(facts, "HOMA-IR = glucose * insulin / 405", work)


# Weighted so that about two draws in three need only whole numbers and a step or two: a model of a
# hundred million parameters can learn those in one short run, and the rest leave room above it.
FORMULAS: tuple[Formula, ...] = (
    Formula("pulse pressure", "pulse pressure", "mmHg", 0, 5, _pulse_pressure),
    Formula("mean arterial pressure", "mean arterial pressure", "mmHg", 0, 3, _mean_pressure),
    Formula("maximal heart rate", "maximal heart rate for age", "beats/min", 0, 5, _maximal_rate),
    Formula("heart rate reserve", "heart rate reserve", "beats/min", 0, 3, _rate_reserve),
    Formula("anion gap", "anion gap (without potassium)", "mmol/L", 0, 3, _anion_gap),
    Formula("expected pCO2", "expected pCO2 by Winters' formula", "mmHg", 0, 3, _winters),
    Formula("pack-years", "smoking history", "pack-years", 0, 5, _pack_years),
    Formula("weight-based dose", "dose to give", "mg", 0, 4, _dose),
    Formula("infusion rate", "infusion rate", "mL/h", 0, 3, _infusion_rate),
    Formula("fluid balance", "net fluid balance", "mL", 0, 3, _fluid_balance),
    Formula("blood volume", "estimated blood volume (70 mL/kg men, 65 women)", "mL", 0, 2, _blood_volume),
    Formula("maintenance fluid", "maintenance fluid by the 4-2-1 rule", "mL/h", 0, 2, _maintenance, for_child=True),
    Formula("LDL cholesterol", "LDL cholesterol by the Friedewald formula", "mg/dL", 0, 2, _friedewald),
    Formula("body mass index", "body mass index", "kg/m2", 1, 3, _body_mass_index),
    Formula("creatinine clearance", "Cockcroft-Gault creatinine clearance", "mL/min", 1, 2, _clearance),
    Formula("corrected calcium", "albumin-corrected calcium", "mg/dL", 2, 2, _corrected_calcium),
    Formula("corrected sodium", "sodium corrected for glucose (factor 1.6)", "mmol/L", 1, 2, _corrected_sodium),
    Formula("serum osmolality", "calculated serum osmolality", "mOsm/kg", 1, 2, _osmolality),
    Formula("ideal body weight", "ideal body weight by the Devine formula", "kg", 1, 2, _ideal_weight),
    Formula("body surface area", "body surface area by the Mosteller formula", "m2", 2, 2, _surface_area),
    Formula("shock index", "shock index", "", 2, 3, _shock_index),
    Formula("HOMA-IR", "HOMA-IR", "", 2, 2, _homa),
)
