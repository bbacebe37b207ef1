"""Threads with cores of their own: results in order, errors that leave nothing running, torch's number as it was."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from aurify.cores import Cores


@pytest.fixture
def four_threads():
    held = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(held)


@pytest.mark.parametrize(("parts", "each"), [(1, 4), (2, 2), (3, 1), (4, 1), (6, 1)])
def test_cores_are_divided(four_threads, parts, each):
    cores = Cores(parts, "test")
    together = threading.Barrier(parts)

    def num_threads(number: int) -> tuple[int, int]:
        together.wait(10)  # all at once
        return number, torch.get_num_threads()

    assert list(cores.map(num_threads, range(parts))) == [(number, each) for number in range(parts)]
    cores.close()


def test_others_keep_their_threads(four_threads):
    """torch has one number for all threads that are yet to come."""
    with ThreadPoolExecutor(8) as makers:
        made = list(makers.map(lambda number: Cores(2, f"test-{number}"), range(8)))
    with ThreadPoolExecutor(1) as later:
        assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 4
    for cores in made:
        cores.close()


def test_results_are_in_order():
    cores = Cores(3, "test")

    def late(number: int) -> int:
        time.sleep(0.01 * (5 - number))
        return number

    assert list(cores.map(late, range(5))) == list(range(5))
    cores.close()


def test_no_more_than_the_window_are_begun_and_not_taken():
    cores, begun = Cores(2, "test"), []
    results = cores.map(begun.append, range(9), window=3)
    for taken in range(1, 10):
        next(results)
        time.sleep(0.02)
        assert len(begun) <= min(taken + 3, 9)
    assert sorted(begun) == list(range(9)) and next(results, "end") == "end"
    cores.close()


def test_an_error_waits_for_what_runs_and_starts_no_more():
    cores, ended, both = Cores(2, "test"), [], threading.Barrier(2)

    def work(number: int) -> None:
        if number < 2:
            both.wait(10)
        if number == 0:
            raise ValueError("zero")
        time.sleep(0.1)
        ended.append(number)

    with pytest.raises(ValueError, match="zero"):
        list(cores.map(work, range(50)))
    assert 1 in ended and len(ended) < 50
    num = len(ended)
    time.sleep(0.2)
    assert len(ended) == num
    cores.close()
