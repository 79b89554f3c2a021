"""How a user writes DATASET: one source, or several with weights.

a:0.7,b:0.3                          a mixture; a and b are each written as below
owner/name@revision#config/split     a hub dataset; all but the name can be left out
anything else                        builtin, a path, pattern or URI
"""

import re
from dataclasses import dataclass, replace

from app.settings.local_paths import local_path

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_PART = re.compile(rf"(?P<spec>.+?):(?P<weight>{_NUMBER})(?:,|$)")


@dataclass(frozen=True, slots=True)
class WeightedPart:
    """One source of a mixture; `weight` is as it was typed."""

    spec: str
    weight: str

    def __str__(self) -> str:
        return f"{self.spec}:{self.weight}"


def mixture_parts(dataset: str) -> tuple[WeightedPart, ...]:
    """The parts of a mixture; none if DATASET names a single source.

    Paths and URIs hold colons and commas too. So only `:number` before a comma or at the end
    counts as a weight, and a DATASET that exists as a path is taken as that path. Raises
    ValueError, with what is wrong.
    """
    if not _meant_as_mixture(dataset):
        return ()
    parts: list[WeightedPart] = []
    start = 0
    while start < len(dataset):
        found = _PART.match(dataset, start)
        if found is None:
            raise ValueError(
                f"{dataset[start:]!r} has no weight: a mixture is written source:weight,source:"
                "weight"
            )
        parts.append(WeightedPart(found["spec"].strip(), found["weight"]))
        start = found.end()
    if len(parts) < 2:
        raise ValueError(
            f"{parts[0].spec!r} has one weight for several sources: a mixture is written "
            "source:weight,source:weight"
        )
    for part in parts:
        if not 0 < float(part.weight) < float("inf"):
            raise ValueError(f"the weight of {part.spec!r} is {part.weight}: weights are above 0")
    if len({part.spec for part in parts}) < len(parts):
        raise ValueError("it names a source twice: give it one weight")
    return tuple(parts)


def _meant_as_mixture(dataset: str) -> bool:
    weights = list(re.finditer(rf":{_NUMBER}(?=,|$)", dataset))
    inner = any(found.end() < len(dataset) for found in weights)
    return (inner or (bool(weights) and "," in dataset)) and not exists(dataset)


def exists(path: str) -> bool:
    """Whether there is a file or folder `path`. What cannot be looked at counts as missing."""
    try:
        return local_path(path).exists()
    except (OSError, ValueError):  # the name is too long, or it cannot be read as a path
        return False


@dataclass(frozen=True, slots=True)
class HubName:
    """owner/name@revision#config/split, taken apart; what was left out is None."""

    repo_id: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        name, _, subset = text.partition("#")
        repo_id, _, revision = name.partition("@")
        config, _, split = subset.partition("/")
        return cls(repo_id, revision or None, config or None, split or None)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit: a branch or a tag can move."""
        return bool(self.revision and re.fullmatch("[0-9a-f]{40}", self.revision))

    def at(self, revision: str) -> "HubName":
        return replace(self, revision=revision)

    def __str__(self) -> str:
        subset = "/".join(filter(None, [self.config or "", self.split]))
        if self.split and not self.config:
            subset = f"/{self.split}"
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo_id}{revision}{f'#{subset}' if subset else ''}"
