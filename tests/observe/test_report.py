"""The report: the values are those of the rows, nothing comes from elsewhere, nothing can hurt."""

import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from app.cli import parser as cli
from app.errors import Fenced, Unavailable
from app.observe.charts import Line, line_chart
from app.observe.report import page, publish
from app.observe.reported_run import ReportedRun, read_run
from app.observe.rows import Row, encode_row
from app.run.journal import AttemptJournal, AttemptRecord
from app.run.layout import METRICS_KEY, REPORT_KEY
from app.run.record import create_record
from app.settings.presets import PRESETS
from app.state.identity import RunRecord
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.job import ROOT
from tests.support.rows import row
from tests.support.stored_run import IDENTITY, attempt_record

HOSTILE = "</title><script>alert(1)</script>\"'&\ud800"


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", "run")


class Page(HTMLParser):
    """What a browser would find: texts, tags, attributes. Raises on tags that do not match."""

    VOID = ("meta", "line", "polyline", "circle")

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1] != "style":
            self.texts.append(data.strip())

    def fact(self, name: str) -> list[str]:
        """The value and the note below it."""
        at = self.texts.index(name)
        return self.texts[at + 1 : at + 3]


def record(total_steps: int = 100, **changes: Any) -> RunRecord:
    return RunRecord(
        run_name="run",
        created_at="2026-01-01T00:00:00+00:00",
        identity=IDENTITY.model_copy(update=changes),
        total_steps=total_steps,
    )


def run_of(rows: list[Row], attempts: list[AttemptRecord] | None = None) -> ReportedRun:
    return ReportedRun("run", record(), rows, attempts or [])


def test_the_facts_are_those_of_the_rows() -> None:
    rows = [replace(row(step, loss=6.0 - step / 10), tokens=step * 1000) for step in range(1, 41)]
    rows[29] = replace(rows[29], loss=1.25, validation_loss=2.0)
    shape = asdict(PRESETS["smollm2-135m"])
    found = Page(page(ReportedRun("run", record(shape=shape), rows, [])))
    assert found.fact("step") == ["40", "of 100"]
    assert found.fact("tokens") == ["40k", "1,000 in each step"]
    assert found.fact("train loss") == ["2.0000", "best 1.2500, step 30"]
    assert found.fact("validation loss") == ["2.0000", f"perplexity {math.exp(2):.1f}, step 30"]
    assert "134,515,008 parameters" in " ".join(found.texts)


def test_a_curve_goes_through_the_points_of_the_rows() -> None:
    chart = line_chart(Line.of([(0, 10.0), (50, 0.0), (100, 5.0)]), [], "loss")
    (path,) = re.findall(r'<polyline class="line" points="([^"]*)"', chart)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in path.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 < y2 < y1, "up is less in an SVG"
    assert y2 - y0 == pytest.approx(y1 - y2, abs=0.11)
    assert chart.count("<circle") == 3


@pytest.mark.parametrize(
    ("seconds", "unit", "last"),
    [(90, "seconds", 80), (1500, "minutes", 25), (7199, "minutes", 100), (36_000, "hours", 10)],
)
def test_the_time_axis_has_the_unit_that_fits_the_run(seconds: int, unit: str, last: int) -> None:
    began = row(1).time
    content = page(run_of([replace(row(n), time=began + n * seconds / 100) for n in range(101)]))
    _, _, figure = content.partition("<figcaption>progress</figcaption>")
    assert f">{unit} since the first step</text>" in figure
    bottom = re.findall(r'y="195" text-anchor="middle">([^<]+)<', figure)
    assert (bottom[0], bottom[-1]) == ("0", str(last))


def test_every_attempt_says_how_it_ended_and_what_it_cost() -> None:
    first = attempt_record(1, 0).model_copy(
        update={"started_at": "2026-01-01T00:00:00+00:00", "seconds": 60.0, "step": 23}
    )
    second = attempt_record(2, 20).model_copy(
        update={
            "started_at": "2026-01-01T00:02:00+00:00",
            "seconds": 30.0,
            "step": 40,
            "steps_lost": 3,
            "failed_saves": 7,
            "ended": "exit 143: stopped at step 40",
        }
    )
    began = 1767225600.0  # 2026-01-01
    rows = [replace(row(step), attempt=1, time=began + 2.0 * step) for step in (1, 20)]
    content = page(run_of([*rows, replace(row(40), attempt=2, time=began + 150)], [first, second]))
    found = Page(content)
    _, _, section = content.partition("<h2>Attempts</h2>")
    lines = [line.split("<td>")[2:] for line in section.split("<tr>")[2:]]
    cells = [[cell.partition("<")[0] for cell in line] for line in lines]
    assert cells[0][:6] == ["1", "2026-01-01 00:00:00", "1:00", "0", "23", "3"]
    assert cells[0][-1] == "no end recorded: killed, or still running"
    assert cells[1][:6] == ["2", "2026-01-01 00:02:00", "0:30", "20", "40", "–"]
    assert cells[1][8] == "7" and cells[1][-1] == "exit 143: stopped at step 40"
    assert found.fact("attempts") == ["2", "3 steps made twice"]
    assert found.fact("training") == ["1:30", "of 2:30 since the first start"]
    bars = re.findall(
        r'<rect class="(\w+)" x="([\d.]+)" y="0" height="20" width="([\d.]+)"', content
    )
    assert [kind for kind, _, _ in bars] == ["unknown", "lost", "stopped"]
    assert float(bars[2][1]) == pytest.approx(800), "it began after 2:00 of 2:30"
    assert float(bars[0][2]) == pytest.approx(400, abs=1), "it ran for 1:00 of 2:30"
    assert float(bars[1][2]) == pytest.approx(400 * 3 / 23, abs=1), "3 of its 23 steps were lost"
    assert found.fact("goodput")[0] == f"{40 * 2.0 / 150:.1%}", "40 steps of 2 s in 150 s"


def test_hostile_names_stay_text() -> None:
    hostile = attempt_record().model_copy(update={"ended": HOSTILE, "started_at": HOSTILE})
    run = ReportedRun(HOSTILE, record(model=HOSTILE, dataset=HOSTILE), [row(1)], [hostile])
    content = page(run)
    found = Page(content)
    assert "script" not in found.tags
    assert "<script" not in content
    assert HOSTILE.replace("\ud800", "\\ud800") in found.texts
    content.encode()


def test_nothing_comes_from_elsewhere_and_nothing_runs() -> None:
    found = Page(content := page(run_of([row(1), row(2)], [attempt_record()])))
    for word in ("http:", "https:", "//", "url(", "@import", "javascript:", "<script", "<link"):
        assert word not in content, word
    names = {name for name, _ in found.attributes}
    assert not names & {"src", "href", "srcset", "style", "action", "data"}
    assert not [name for name in names if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes


def assert_same_size(few: int, many: int) -> None:
    def size(count: int) -> int:
        one, steps = row(1), range(1, count + 1)
        rows = [replace(one, step=s, loss=3 + math.sin(s * 0.7), time=1.7e9 + s) for s in steps]
        return len(page(run_of(rows)))

    assert size(many) < 1.1 * size(few) < 200_000


def test_the_size_of_the_page_does_not_grow_with_the_rows() -> None:
    assert_same_size(few=5_000, many=50_000)


@pytest.mark.slow
def test_a_million_rows_make_a_page_of_the_same_size() -> None:
    assert_same_size(few=5_000, many=1_000_000)


def test_what_cannot_be_drawn_is_left_out() -> None:
    bad = [math.nan, math.inf, -math.inf, 1e300]
    rows = [replace(row(step), loss=loss, validation_loss=loss) for step, loss in enumerate(bad, 1)]
    found = Page(page(run_of([*rows, replace(row(9), loss=3.5)])))
    assert found.fact("train loss") == ["3.5000", "best 3.5000, step 9"]
    assert Page(page(run_of(rows))).tags.count("figure") == 4


@pytest.mark.parametrize("rows", [[], [row(1)]])
def test_a_run_that_just_began_has_a_page(rows: list[Row]) -> None:
    assert Page(page(run_of(rows))).fact("step")[1] == "of 100"
    Page(page(ReportedRun("run", None, rows, [attempt_record()])))


@pytest.mark.parametrize(
    "shape",
    [{}, {"hidden_size": "x" * 1000}, {**asdict(PRESETS["tiny"]), "num_attention_heads": 0}],
)
def test_a_shape_that_is_none_has_no_parameters(shape: dict[str, Any]) -> None:
    assert "parameters" not in page(ReportedRun("run", record(shape=shape), [], []))


def test_what_a_store_cannot_mean_is_left_out(folder: Store) -> None:
    good, absurd = row(1), replace(row(2), step=10**300)
    folder.put(
        METRICS_KEY,
        [encode_row(good), encode_row(absurd), encode_row(replace(row(3), time=math.inf))],
    )
    AttemptJournal(folder, attempt_record(1)).begin()
    forever = attempt_record(2).model_copy(update={"seconds": math.inf})
    AttemptJournal(folder, forever).begin()
    run = read_run(folder)
    assert (run.rows, [attempt.epoch for attempt in run.attempts]) == ([good], [1])
    beyond = record().model_copy(update={"total_steps": 10**300})
    late = attempt_record(3).model_copy(update={"seconds": 1e15})
    Page(page(ReportedRun("run", beyond, [good], [late])))


class HeldForever:
    """The right to write, which a test can take away."""

    def __init__(self, store: Store) -> None:
        self.store, self.lost = store, False

    def check(self) -> None:
        pass

    def put(self, key: str, content: bytes) -> None:
        if self.lost:
            raise Fenced("held by another process")
        self.store.put(key, [content])


def test_the_page_in_the_store_is_the_runs_own(store: Store) -> None:
    create_record(store, "run", IDENTITY, 100)
    store.put(METRICS_KEY, [encode_row(row(1)), encode_row(row(2))])
    publish(store, HeldForever(store))
    content, _ = store.get(REPORT_KEY)
    assert Page(content.decode()).fact("step") == ["2", "of 100"]


def test_a_page_that_cannot_be_written_stops_nothing(
    folder: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldForever(folder)
    held.lost = True
    publish(folder, held)
    assert "the report was not written: held by another process" in caplog.text

    def unreachable(*_: object, **__: object) -> None:
        raise Unavailable("503")

    monkeypatch.setattr(folder, "get", unreachable)
    publish(folder, HeldForever(folder))
    assert "the report was not written: 503" in caplog.text
    monkeypatch.setattr(folder, "get", lambda *_, **__: 1 / 0)
    publish(folder, HeldForever(folder))
    assert "ZeroDivisionError" in caplog.text
    assert list(folder.list("")) == []


def test_the_command_writes_the_page_whole_and_names_it(
    folder: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    create_record(folder, "run", IDENTITY, 100)
    folder.put(METRICS_KEY, [encode_row(row(1))])
    settings = ["--checkpoint_uri", f"file://{tmp_path}/store", "--run_name", "run"]
    assert cli.main(["report", *settings]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run-report.html")
    (tmp_path / "other.html").write_text("old")
    assert cli.main(["report", *settings, "--to", "other.html"]) == 0
    first, second = (tmp_path / name for name in ("run-report.html", "other.html"))
    assert Page(first.read_text("utf-8")).fact("step") == Page(second.read_text("utf-8")).fact(
        "step"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other.html",
        "run-report.html",
        "store",
    ]
    assert cli.main(["report", *settings, "--to", str(tmp_path / "store")]) == 78


def test_the_command_needs_no_torch(folder: Store, tmp_path: Path) -> None:
    create_record(folder, "run", IDENTITY, 100)
    code = (
        "import sys; from app.cli.parser import main; "
        f"code = main(['report', '--checkpoint_uri', 'file://{tmp_path}/store', "
        f"'--run_name', 'run', '--to', '{tmp_path}/page.html']); "
        "print(code, sorted({'torch', 'numpy', 'tensorboard'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "0 []"
