"""Typing errors that a reader sees through."""

from __future__ import annotations

import difflib

import numpy as np

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_LONG = 4  # letters of the shortest word that is misspelt


def misspell(text: str, rng: np.random.Generator, known: frozenset[str], words: int = 2) -> str:
    """Mistype one letter in each of several words: two swapped, one left out, doubled or hit beside its key.

    Args:
        text: words, separated by spaces.
        rng: chooses words and errors.
        known: all words there are; a misspelt one is none of them, and nearest to the right one.
        words: to misspell; fewer where the text has not as many of at least four letters.
    """
    given = text.split(" ")
    long = [place for place, word in enumerate(given) if len(word) >= _LONG and word.isalpha()]
    for place in rng.permutation(long)[:words]:
        while True:
            wrong = _mistyped(given[place], rng)
            nearest = difflib.get_close_matches(wrong, known | {given[place]}, n=1)
            if wrong not in {*known, given[place]} and nearest == [given[place]]:
                break
        given[place] = wrong
    return " ".join(given)


def _mistyped(word: str, rng: np.random.Generator) -> str:
    """The first letter stays: readers need it most."""
    at = int(rng.integers(1, len(word) - 1))
    kind = int(rng.integers(4))
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[: at + 1] + word[at:]
    row = next(row for row in _ROWS if word[at] in row)
    beside = row[max(0, row.index(word[at]) - 1) : row.index(word[at]) + 2].replace(word[at], "")
    return word[:at] + beside[int(rng.integers(len(beside)))] + word[at + 1 :]
