"""A scheduler's signals end a run through `finally`, with the exit code for a requeue."""

import os
import signal
import threading
import time
from pathlib import Path

import forks
import pytest

from scoreline.runtime.stop_signals import SIGNALS, SUBMITIT, Requeue, stop_signals

WORDS = ("checkpoint=digits_vp", "metrics=none", "nfe=200", "seeds=0-31", "batch_size=8", "network_batch=8")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_through_finally(number: signal.Signals) -> None:
    former, steps = signal.getsignal(number), []

    def work() -> None:
        with stop_signals():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), number)  # a second signal does not disturb the end
                steps.append("kept")

    with pytest.raises(Requeue) as left:
        work()
    assert (left.value.code, left.value.name, steps) == (75, number.name, ["kept"])
    assert signal.getsignal(number) is former


def test_submitit_and_threads_keep_their_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    former, found = signal.getsignal(signal.SIGTERM), []

    def handler() -> None:
        with stop_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=handler)
    thread.start()
    thread.join()
    monkeypatch.setenv(SUBMITIT, "slurm")
    handler()
    assert found == [former, former]


def test_sampling_stops_with_75_and_goes_on(tmp_path: Path) -> None:
    (process,) = forks.start(str(forks.ROOT / "sample.py"), tmp_path, *WORDS, "hydra.run.dir=out")
    limit = time.monotonic() + 100
    while not list(tmp_path.glob("out/shards/*.safetensors")) and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process, signal.SIGUSR1)
    assert forks.ended(process, 60) == 75
    said = (tmp_path / "said-0").read_text().splitlines()
    assert said[-1].startswith("SIGUSR1: ")
    assert said[-1].endswith(" of 32 images are kept; the same command resumes")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/shards").iterdir()}
    assert 0 < len(kept) < 4
    assert f" {8 * len(kept)} of 32 " in said[-1]
