"""How a mixture is told from paths and URIs that hold colons and commas too."""

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.settings.dataset_spec import mixture_parts
from app.settings.load import load_settings


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("a:0.7,b:0.3", [("a", "0.7"), ("b", "0.3")]),
        (
            "owner/name@main#en/test:2, builtin:1",
            [("owner/name@main#en/test", "2"), ("builtin", "1")],
        ),
        (
            "s3://bucket/a,b/*.jsonl:.5,http://host:8080/x.txt:1e-1",
            [("s3://bucket/a,b/*.jsonl", ".5"), ("http://host:8080/x.txt", "1e-1")],
        ),
        ("/data/x:y.txt:1,/data/z.txt:1.", [("/data/x:y.txt", "1"), ("/data/z.txt", "1.")]),
    ],
)
def test_parts_and_weights(dataset: str, expected: list[tuple[str, str]]) -> None:
    parts = mixture_parts(dataset)
    assert [(part.spec, part.weight) for part in parts] == expected
    assert mixture_parts(",".join(map(str, parts))) == parts


@pytest.mark.parametrize(
    "dataset",
    ["builtin", "owner/name", "http://host:8080", "http://h:80/a.txt", "/a,b.txt", "s3://b/x,y/*"],
)
def test_one_source_is_no_mixture(dataset: str) -> None:
    assert mixture_parts(dataset) == ()


def test_what_exists_as_a_path_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a:1,b:2"
    assert len(mixture_parts(str(path))) == 2
    path.mkdir()
    assert mixture_parts(str(path)) == ()


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("a:0.5,b", "'b' has no weight"),
        ("a,b:0.5", "'a,b' has one weight for several sources"),
        ("a:0,b:1", "the weight of 'a' is 0: weights are above 0"),
        ("a:1,b:-2", "the weight of 'b' is -2: weights are above 0"),
        ("a:1,b:1e999", "the weight of 'b' is 1e999"),
        ("a:nan,b:1", "'a:nan,b' has one weight for several sources"),
        ("a:1,b:1,a:2", "it names a source twice"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_refused_with_the_settings(
    dataset: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"dataset": dataset})
    assert str(caught.value).startswith(f"DATASET={dataset!r} (from a flag) cannot be used: ")
    assert reason in str(caught.value)
