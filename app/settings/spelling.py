"""Misspelled names of variables, and what was probably meant."""

import difflib
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from app.settings.variables import SECTIONS, Variable, variables

_ALIKE = 0.9  # the least similarity of two names that differ by a slip, as difflib counts it
# Letters; below it too many other words are one slip away. The value has to fit as well then: SED=7
# is meant for SEED, and SED=/bin/sed is not.
_SHORT = 5
_OTHER_WORDS = {"DEED", "FEED", "HEED", "NEED", "REED", "SEEK", "SEEN", "SEND", "SPEED", "WEED"}


def misspelled(given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs (name, nearest variable) for each `given` one that is almost a variable of ours."""
    known = list(variables())
    for name in sorted(given.keys()):
        if name.upper() not in (variable.name for variable in known):
            nearest = next(
                (ours for ours in known if _almost(name.upper(), given[name], ours)), None
            )
            if nearest:
                yield name, nearest.name


def _almost(name: str, value: str, variable: Variable) -> bool:
    ours = variable.name
    if "_" in name:
        alike = difflib.SequenceMatcher(None, name, ours).ratio() >= _ALIKE
        return alike or ours.startswith(f"{name}_")
    # MODE, MODELS and COMPILER are other programs' words, not our MODEL and COMPILE.
    if name.startswith(ours) or ours.startswith(name) or not _one_slip(name, ours):
        return False
    return len(ours) >= _SHORT or (name not in _OTHER_WORDS and _fits(value, variable))


def _one_slip(name: str, ours: str) -> bool:
    """Whether one letter is wrong, missing or too many, or two have changed places."""
    same = next((n for n, (a, b) in enumerate(zip(name, ours, strict=False)) if a != b), 0)
    given, right = name[same:], ours[same:]
    swapped = given[:2] == right[1::-1] and given[2:] == right[2:]
    return swapped or given[1:] in (right, right[1:]) or given == right[1:]


def _fits(value: str, variable: Variable) -> bool:
    try:
        SECTIONS[variable.section](**{variable.name.lower(): value})  # type: ignore[arg-type]
    except ValidationError:
        return False
    return True
