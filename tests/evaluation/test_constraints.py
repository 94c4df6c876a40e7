"""Each constraint's check, on a response that keeps it and on responses that just miss."""

from __future__ import annotations

import pytest

from gentletune.data.example import Constraint
from gentletune.evaluation.constraints import CHECKERS, satisfied

CASES: list[tuple[Constraint, list[str], list[str]]] = [
    (Constraint("lowercase"), ["all small, 3 of them.", "  été  "], ["Not small", "123"]),
    (Constraint("uppercase"), ["LOUD AND CLEAR!"], ["LOUD and CLEAR", "123 !"]),
    (
        Constraint("bullets", 2),
        ["- red\n- blue", "* red\n\n* blue", "Colours:\n• red\n• blue"],
        ["- red", "- red\n- blue\n- green", "-red\n-blue", "- \n- ", "1. red\n2. blue"],
    ),
    (
        Constraint("numbered", 3),
        ["1. a\n2. b\n3. c", "Here:\n1) a\n2) b\n3) c"],
        ["1. a\n2. b", "1. a\n2. b\n3. c\n4. d", "1. a\n3. b\n2. c", "- a\n- b\n- c", "1. a\n1. b\n1. c"],
    ),
    (
        Constraint("only", "bullets"),
        ["- red\n\n* blue", "- a"],
        ["Colours:\n- red", "- red\n- blue\nThat is all.", "-"],
    ),
    (Constraint("only", "numbered"), ["1. red\n 2) blue"], ["1. red\nblue", "- red"]),
    (Constraint("contains", "sand"), ["Warm Sand everywhere.", "sand"], ["A sandwich.", "thousand", "Gold."]),
    (Constraint("contains", "c++"), ["I like C++ best."], ["I like c best."]),
    (Constraint("not_contains", "sand"), ["A sandwich."], ["The sand is hot.", "SAND!"]),
    (
        Constraint("starts_with", "Perhaps"),
        ["Perhaps it rains.", "\nPerhaps"],
        ["perhaps not", "So. Perhaps", "Perhapsy"],
    ),
    (
        Constraint("ends_with", "The end."),
        ["They left. The end.", "The end.\n"],
        ["They left. The end", "The end. Or not?", "the end.", "Bathe end.", "BreaThe end."],
    ),
    (Constraint("max_words", 3), ["one two three", "one"], ["one two three four"]),
    (Constraint("min_words", 3), ["one two three"], ["one two"]),
    (Constraint("no_commas"), ["plain; words"], ["one, two"]),
    (
        Constraint("json"),
        ['{"a": [1, 2]}', "{}\n"],
        ["[1]", '"a"', "{'a': 1}", '{"a": NaN}', '```json\n{"a": 1}\n```', 'Sure: {"a": 1}', '{"a": 1'],
    ),
    (
        Constraint("json", '{"name": "sea"}'),
        ['{"name": "sea"}', '{"age": [1], "name": "sea"}'],
        ['{"name": "Sea"}', '{"title": "sea"}', "{}", '[{"name": "sea"}]', '{"name": ["sea"]}'],
    ),
    (Constraint("json", "name"), ['{"name": "sea"}'], ['{"title": "sea"}', "{}"]),
    (
        Constraint("repeat", "I like tea."),
        ["I like tea.", " I like tea.\n"],
        ['"I like tea."', "I like tea", "i like tea."],
    ),
    (Constraint("one_word"), ["Blue", "blue."], ["Dark blue", "42", "..."]),
    (Constraint("question"), ["Why not?"], ["Why not", "Why? Because.", "???"]),
]


@pytest.mark.parametrize(("constraint", "kept", "missed"), CASES)
def test_a_check_tells_kept_from_missed(constraint: Constraint, kept: list[str], missed: list[str]) -> None:
    for response in kept:
        assert satisfied(response, [constraint]), response
    for response in missed:
        assert not satisfied(response, [constraint]), response


def test_every_kind_is_covered_above() -> None:
    assert {constraint.kind for constraint, _, _ in CASES} == set(CHECKERS)


def test_all_constraints_must_hold() -> None:
    both = [Constraint("lowercase"), Constraint("max_words", 2)]
    assert satisfied("so it", both)
    assert not satisfied("so it is", both)
    assert not satisfied("So it", both)


@pytest.mark.parametrize("empty", ["", "  \n\t"])
def test_an_empty_response_satisfies_nothing(empty: str) -> None:
    assert not satisfied(empty, [])
    for constraint, _, _ in CASES:
        assert not satisfied(empty, [constraint])
    assert satisfied("anything", [])


@pytest.mark.parametrize("response", ["words", ""])
def test_an_unknown_kind_is_named(response: str) -> None:
    with pytest.raises(ValueError, match="unknown constraint 'rhymes'"):
        satisfied(response, [Constraint("lowercase"), Constraint("rhymes")])


@pytest.mark.parametrize(
    "constraint",
    [Constraint("bullets"), Constraint("max_words", "3"), Constraint("min_words", 0), Constraint("numbered", -1)],
)
def test_a_count_must_be_a_positive_whole_number(constraint: Constraint) -> None:
    with pytest.raises(ValueError, match="whole number of at least 1"):
        satisfied("words", [constraint])


@pytest.mark.parametrize("kind", ["contains", "not_contains", "starts_with", "ends_with", "repeat"])
def test_a_text_must_be_given(kind: str) -> None:
    for argument in (None, 3, " "):
        with pytest.raises(ValueError, match="takes a text"):
            satisfied("words", [Constraint(kind, argument)])
