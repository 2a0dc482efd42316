"""Every rank hears what all said, in rank order; one that failed or stays away is named instead of waited for."""

import threading
import time

import pytest
import torch.distributed as dist

from megatron_lite.parallel.words import LostRank, Words


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def on_ranks(store, size: int, function, patience: float = 20.0) -> list:
    """function(words) of each rank, on a thread with a connection of its own; an exception stands for its result."""
    results = [None] * size

    def run(rank: int) -> None:
        words = Words(dist.TCPStore("127.0.0.1", store.port, is_master=False), rank, size, patience)
        try:
            results[rank] = function(words)
        except LostRank as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_every_rank_hears_all_texts_in_rank_order_round_after_round(store):
    def talk(words: Words) -> list[list[str]]:
        return [words.exchange(f"{words.rank} in {number}: Grüße\n", "test") for number in range(5)]

    expected = [[f"{rank} in {number}: Grüße\n" for rank in range(4)] for number in range(5)]
    assert on_ranks(store, 4, talk) == [expected] * 4


def test_no_rank_goes_on_before_the_last_has_spoken(store):
    spoke = []

    def talk(words: Words) -> bool:
        if words.rank == 2:
            time.sleep(0.3)
            spoke.append(True)
        words.exchange("", "barrier")
        return bool(spoke)

    assert on_ranks(store, 3, talk) == [True] * 3


def test_a_round_leaves_one_key_in_the_store(store):
    before = store.num_keys()

    def talk(words: Words) -> None:
        for _ in range(10):
            words.exchange("x", "test")

    on_ranks(store, 3, talk)
    assert store.num_keys() == before + 1


def test_a_rank_that_fails_is_named_at_once(store):
    def talk(words: Words):
        if words.rank == 1:
            words.fail("shard 7: cut short")
            return None
        begin = time.monotonic()
        with pytest.raises(LostRank, match=r"^checkpoint.write: rank 1: shard 7: cut short$"):
            words.exchange("", "checkpoint.write")
        return time.monotonic() - begin

    waited = on_ranks(store, 3, talk)
    assert max(waited[0], waited[2]) < 5


def test_ranks_that_stay_away_are_named_when_patience_ends(store):
    def talk(words: Words):
        return None if words.rank in (1, 3) else words.exchange("", "checkpoint.write")

    said = on_ranks(store, 4, talk, patience=0.5)
    assert str(said[0]) == "checkpoint.write: no word from ranks [1, 3] for 0.5 s"
    assert str(said[2]) == "checkpoint.write: no word from ranks [0] for 0.5 s"


def test_two_meetings_over_one_store_do_not_hear_each_other(store):
    def talk(words: Words) -> list[list[str]]:
        heard = []
        for meeting in "ab":
            inner = Words.over(words.store, words.rank, words.size)
            heard.append(inner.exchange(f"{meeting}{words.rank}", "test"))
        return heard

    assert on_ranks(store, 2, talk) == [[["a0", "a1"], ["b0", "b1"]]] * 2


def test_rank_0_is_the_last_to_part(store):
    def talk(words: Words) -> float:
        if words.rank == 0:
            words.part("end")
            return time.monotonic()
        words.exchange("", "end")
        time.sleep(0.3)  # slow to hear the last word
        spoken = time.monotonic()
        words.store.add("1/heard by", 1)
        return spoken

    first, second = on_ranks(store, 2, talk)
    assert first > second


def test_a_process_by_itself_hears_itself():
    words = Words.alone()
    assert words.exchange("x", "test") == ["x"]
    words.part("end")
