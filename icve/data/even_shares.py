"""Shares that hold at every moment: of turns in an endless row, and of the cells of a table with given sums."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import count

_ROUNDS = 2000  # of fitting a table; those that can be fitted need tens
_TOLERANCE = 1e-9


class EvenShares:
    """Whose turn it is, in an endless row of turns of which everybody has a share.

    Of the first n turns, whatever n is, everybody has n times its share but for less than two (for two entries: at most
    half a turn). Who has turn n is computed without the turns before it, in whole numbers.

    The entries are the leaves of a tree, the two of least weight joined first (as in a Huffman code). At a fork, the
    left side has the nearest whole number to its part of the turns that come there. This adds at most half a turn to
    what the fork itself is wrong by, of which a side has its part; and in such a tree no fork has more than two thirds
    of the fork above it, so that the errors do not add up.

    Args:
        weights: of the entries, in any unit; one of 0 has no turn.

    Raises:
        ValueError: a weight is negative, or all are 0.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        if min(weights, default=0) < 0 or not any(weights):
            raise ValueError("Shares are made of weights of at least 0, not all of them 0.")
        self.entries = len(weights)
        order = count()
        heap = [(weight, next(order), entry) for entry, weight in enumerate(weights) if weight]
        heapq.heapify(heap)
        self._forks: dict[int, tuple[Fraction, int, int]] = {}  # by number: the left's part, left and right
        while len(heap) > 1:
            (light, _, right), (heavy, _, left) = heapq.heappop(heap), heapq.heappop(heap)
            fork = -1 - len(self._forks)  # a number that is no entry's
            self._forks[fork] = heavy / (light + heavy), left, right
            heapq.heappush(heap, (light + heavy, next(order), fork))
        self._root = heap[0][2]

    def turn(self, number: int) -> tuple[int, int]:
        """Whose turn number `number` is (from 0), and how many turns it has had before."""
        place = self._root
        while place < 0:
            part, left, right = self._forks[place]
            before = _rounded(part, number)
            place, number = (left, before) if _rounded(part, number + 1) > before else (right, number - before)
        return place, number

    def counts(self, turns: int) -> list[int]:
        """How many of the first `turns` turns each entry has."""
        counts = [0] * self.entries
        places = [(self._root, turns)]
        while places:
            place, number = places.pop()
            if place >= 0:
                counts[place] = number
            else:
                part, left, right = self._forks[place]
                places += [(left, _rounded(part, number)), (right, number - _rounded(part, number))]
        return counts


def _rounded(part: Fraction, number: int) -> int:
    return (2 * part.numerator * number + part.denominator) // (2 * part.denominator)


def fitted(table: Sequence[Sequence[Fraction]], columns: Sequence[Fraction]) -> list[list[Fraction]] | None:
    """The table nearest to a given one (by relative entropy) that has the same row sums and these column sums.

    Entries of 0 stay 0. The column sums are exact, the row sums to 1e-9 (iterative proportional fitting).

    Args:
        table: rows of at least one positive entry.
        columns: wanted sums, together as much as the table.

    Returns:
        the table, None where there is none.
    """
    rows = [float(sum(row)) for row in table]
    cells = [[float(cell) for cell in row] for row in table]
    for _ in range(_ROUNDS):
        for row, wanted in zip(cells, rows, strict=True):
            scale = math.fsum(row)
            row[:] = [cell * wanted / scale if scale else 0.0 for cell in row]
        for column, total in enumerate(columns):
            scale = math.fsum(row[column] for row in cells)
            for row in cells:
                row[column] *= float(total) / scale if scale else 0.0
        pairs = zip(cells, rows, strict=True)
        if all(abs(math.fsum(row) - wanted) <= _TOLERANCE * wanted for row, wanted in pairs):
            break
    else:
        return None
    exact = [[Fraction(cell) for cell in row] for row in cells]
    sums = [sum(row[column] for row in exact) for column in range(len(columns))]
    if any(bool(found) != bool(total) for found, total in zip(sums, columns, strict=True)):
        return None
    return [
        [cell * total / found if found else cell for cell, found, total in zip(row, sums, columns, strict=True)]
        for row in exact
    ]
