"""The curves of a run as one picture."""

from xml.etree import ElementTree

from app.observe.pictures import picture_of_curves
from tests.support.rows import row


def test_each_curve_that_has_points_is_drawn_and_the_others_are_left_out() -> None:
    root = ElementTree.fromstring(picture_of_curves([row(1), row(2), row(3)], [2]))
    titles = [t.text for t in root.findall("{*}text")]
    assert titles == ["train loss", "learning rate", "throughput"]  # nothing was validated
    assert len(root.findall(".//{*}polyline")) == 3
    assert len(root.findall(".//{*}line[@class='mark']")) == 3


def test_without_rows_there_is_a_picture_of_nothing() -> None:
    assert ElementTree.fromstring(picture_of_curves([], [])).findall(".//{*}polyline") == []
