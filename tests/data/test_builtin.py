import platform
import sysconfig
from pathlib import Path

import pytest

from app.data.builtin import builtin_documents, builtin_fingerprint
from app.errors import NotFound


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(builtin_documents())


def test_it_is_the_library_of_this_python_with_its_manual(texts: list[str]) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    assert (library / "json" / "decoder.py").read_text("utf-8") in texts
    assert any(text.startswith('The "assert" statement\n') for text in texts)
    assert sum(map(len, texts)) > 8_000_000


def test_nothing_that_was_installed_or_only_tests_belongs_to_it(texts: list[str]) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    for foreign in ("unittest/test/test_case.py", "test/test_dict.py", "encodings/cp1250.py"):
        path = library / foreign
        assert not path.is_file() or path.read_text("utf-8") not in texts
    assert Path(pytest.__file__).read_text("utf-8") not in texts


def test_it_is_the_same_on_every_kind_of_processor(texts: list[str]) -> None:
    # build_time_vars holds the compiler's name for the platform.
    assert not any(
        "build_time_vars = {" in text and f"{platform.machine()}-linux-gnu" in text
        for text in texts
    )


def test_it_is_the_same_each_time(texts: list[str]) -> None:
    assert list(builtin_documents()) == texts
    builtin_fingerprint.cache_clear()
    first = builtin_fingerprint()
    builtin_fingerprint.cache_clear()
    assert builtin_fingerprint() == first


def test_the_manual_is_read_and_never_executed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("raise SystemExit('executed')")
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'b': 'B' '2', 'a': 'A'}\n")
    assert list(builtin_documents(tmp_path)) == ["raise SystemExit('executed')", "A", "B2"]
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'a': exit(3)}\n")
    with pytest.raises(ValueError, match="malformed"):
        list(builtin_documents(tmp_path))


def test_the_fingerprint_sees_content_and_borders(tmp_path: Path) -> None:
    seen = set()
    for first, second in (("ab", "c"), ("a", "bc"), ("ab", "d")):
        library = tmp_path / f"{first} {second}"
        library.mkdir()
        (library / "1.py").write_text(first)
        (library / "2.py").write_text(second)
        seen.add(builtin_fingerprint(library))
    assert len(seen) == 3


def test_a_python_without_its_library_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"DATASET=builtin: {tmp_path} holds no source files"):
        list(builtin_documents(tmp_path))
