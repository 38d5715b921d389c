import math

import pytest

from yayan.train.watch import Watch


def test_the_best_is_told_and_the_run_ends_when_it_stays_away() -> None:
    watch = Watch(patience=2)
    better = [
        watch.take(step, {"zh": value, "en": 1.0}) for step, value in enumerate([3.0, 2.0, 2.5, 1.9, 2.0])
    ]
    assert better == [True, True, False, True, False]
    assert not watch.ends
    watch.take(5, {"zh": math.nan, "en": 0.0})
    assert watch.ends
    assert (watch.best, watch.best_step) == (1.9, 3)


def test_without_patience_it_goes_on() -> None:
    watch = Watch()
    for step in range(50):
        watch.take(step, {"zh": 1.0})
    assert not watch.ends


def test_a_text_that_rises_beyond_its_bound_raises_an_alarm(capsys: pytest.CaptureFixture) -> None:
    watch = Watch(bounds={"en": 0.1})
    watch.take(0, {"zh": 5.0, "en": 2.0})
    watch.take(10, {"zh": 9.0, "en": 2.19})
    assert not watch.alarms
    watch.take(20, {"zh": 1.0, "en": 2.21})
    assert watch.alarms == ["step 20: en has risen from 2.000 to 2.210 bits per byte"]
    assert "more than the bound of 10%" in capsys.readouterr().err
