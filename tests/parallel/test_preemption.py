from __future__ import annotations

import os
import signal

import pytest

from hpcqa.parallel import preemption
from hpcqa.parallel.preemption import Preempted


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    preemption.listen(at_once=False)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_flag_for_those_who_ask():
    preemption.listen(at_once=False)
    preemption.check()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert preemption.requested()
    assert preemption.wants_requeue()
    with pytest.raises(Preempted):
        preemption.check()


def test_at_once_only_the_first_signal_raises():
    preemption.listen(at_once=True)
    with pytest.raises(Preempted, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert not preemption.wants_requeue()


def test_ignored_while_cleaning_up():
    preemption.listen(at_once=True)
    preemption.ignore()
    os.kill(os.getpid(), signal.SIGTERM)
    assert not preemption.requested()
