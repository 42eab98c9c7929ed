"""Tests of formatted counts, sizes, durations and times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from talud.text import counted, dimensions, duration, first_line, utc_text


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 landslides"), (1, "1 landslide"), (2, "2 landslides"), (1234, "1,234 landslides")]
)
def test_counted_uses_the_singular_for_one(number: int, words: str) -> None:
    assert counted(number, "landslide") == words


def test_counted_takes_an_irregular_plural() -> None:
    assert [counted(number, "patch", "patches") for number in (1, 2)] == ["1 patch", "2 patches"]


def test_dimensions_name_columns_before_rows() -> None:
    assert dimensions(457, 219) == "457 columns × 219 rows"
    assert dimensions(1, 12_000) == "1 column × 12,000 rows"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "less than a second"), (1, "1 second"), (48.4, "48 seconds"), (59.6, "1 minute"), (89, "1 minute"),
        (150, "2 minutes"), (3599, "1 hour"), (9000, "2.5 hours"),
    ],
)  # fmt: skip
def test_duration_is_never_zero(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_utc_text_is_utc_to_the_second() -> None:
    bogota = timezone(timedelta(hours=-5))
    assert utc_text(datetime(2015, 5, 18, 2, 40, 5, 999, bogota)) == "2015-05-18T07:40:05Z"


@pytest.mark.parametrize(("message", "line"), [("\n one \n two", "one"), (" \n", "ValueError"), ("", "ValueError")])
def test_first_line_returns_message_or_type(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
