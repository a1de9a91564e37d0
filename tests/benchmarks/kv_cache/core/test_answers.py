"""Scores of what was written, by hand."""

from __future__ import annotations

import pytest

from benchmarks.kv_cache.core.answers import (
    classified,
    f1,
    line_likeness,
    numbered,
    rouge_l,
    share_contained,
    share_found,
)


def test_whole_words_are_found_whatever_their_case():
    assert share_found(" 48213.", ["48213"]) == 1
    assert share_found("482135", ["48213"]) == 0
    assert share_found("x48213", ["48213"]) == 0
    assert share_found("rixoz, tobak", ["TOBAK", "RIXOZ", "GUNEL", "RIX"]) == 0.5
    assert share_found("4.213", ["4+213"]) == 0


def test_contained_counts_parts_of_words():
    assert share_contained("it is 482135 or ABC", ["48213", "abc", "999"]) == pytest.approx(2 / 3)


def test_f1_by_hand():
    assert f1("The tower, of London!", "tower of london") == 1
    assert f1("London", "the tower of London") == pytest.approx(2 * (1 / 1) * (1 / 3) / (1 / 1 + 1 / 3))
    assert f1("red red red", "red blue") == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert f1("", "red") == 0
    assert f1("the", "a") == 0


def test_the_class_that_is_named():
    classes = ["Other entity", "Other location", "City", "Individual", "Human", "Human group"]
    assert classified(" City", "City", classes) == 1
    assert classified("Other location, or City", "City", classes) == 0.5
    assert classified("Other location", "City", classes) == 0
    # a part of the right name is no other name; what is more than it is one
    assert classified("Human group", "Human group", classes) == 1
    assert classified("Human group", "Human", classes) == 0.5


def test_the_number_that_is_given():
    assert numbered(" Paragraph 12", "Paragraph 12") == 1
    assert numbered("12 or 3, 12 of 40", "Paragraph 12") == 0.5
    assert numbered("120", "12") == 0
    assert numbered("none", "12") == 0


def test_the_line_of_code_that_is_alike():
    assert line_likeness("    return x\nmore", "    return x") == 1
    assert line_likeness("```python\n# a comment\n// another\n    return x\n", "    return x") == 1
    assert line_likeness("\n\nabcd", "bcde") == 0.75
    assert line_likeness("``` ", "x") == 0
    assert line_likeness("abc", "abd") == 0.67


def test_rouge_l_by_hand():
    assert rouge_l("the cat sat", "the cat sat") == pytest.approx(1)
    # in common: the, cat, mat in their order
    assert rouge_l("the cat on a mat", "the fat cat ate the mat") == pytest.approx(2 * (3 / 5) * (3 / 5) / (6 / 5))
    # order counts within a sentence, not between them
    assert rouge_l("b a", "a b") == pytest.approx(1 / 2)
    assert rouge_l("b. a", "a. b") == pytest.approx(2 * 1 * 1 / 2)
    # a word counts once, wherever it is found
    assert rouge_l("red red red", "red blue") == pytest.approx(2 * 1 * (1 / 2) / (3 / 2))
    assert rouge_l("x y. y z", "x y z") == pytest.approx(1)
    # of two subsequences that are as long: "b" is met going back in what was written first
    assert rouge_l("a b. q", "b a q") == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    # no stem, no case; a dot behind a blank begins an empty sentence, which both have here
    assert rouge_l("Cats", "cat") == 0
    assert rouge_l("a. ", "b. ") == pytest.approx(1 / 2)
    assert rouge_l("", "a") == rouge_l("...", "a") == 0
