"""Misspelled names of variables, and what was probably meant."""

import difflib
from collections.abc import Iterator

from app.settings.variables import variables

_ALIKE = 0.9  # the least similarity of two names that differ by a slip, as difflib counts it
_SHORT = 5  # letters; below it too many other words are one slip away, as SPEED is from SEED


def misspelled(names: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of (name, nearest variable), for each name that is almost a variable of ours."""
    known = [variable.name for variable in variables()]
    for name in sorted(set(names)):
        if name.upper() not in known:
            nearest = next((ours for ours in known if _almost(name.upper(), ours)), None)
            if nearest:
                yield name, nearest


def _almost(name: str, ours: str) -> bool:
    if "_" in name:
        alike = difflib.SequenceMatcher(None, name, ours).ratio() >= _ALIKE
        return alike or ours.startswith(f"{name}_")
    # MODE, MODELS and COMPILER are other programs' words, not our MODEL and COMPILE.
    if len(ours) < _SHORT or name.startswith(ours) or ours.startswith(name):
        return False
    # One letter is wrong, missing or too many, or two have changed places.
    same = next((n for n, (a, b) in enumerate(zip(name, ours, strict=False)) if a != b), 0)
    given, right = name[same:], ours[same:]
    swapped = given[:2] == right[1::-1] and given[2:] == right[2:]
    return swapped or given[1:] in (right, right[1:]) or given == right[1:]
