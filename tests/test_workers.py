import subprocess
import sys

from support.killing import InlinePool

from megatron_lite.workers import map_in_order


def test_workers_end_with_a_parent_that_is_killed():
    # Workers inherit the standard output: it comes to its end when the last of them is gone.
    script = (
        "import multiprocessing, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from megatron_lite.workers import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(2, multiprocessing.get_context('spawn'), initializer=end_with_parent)\n"
        "    [future.result() for future in [pool.submit(abs, -1) for _ in range(2)]]\n"
        "    print('started', flush=True)\n"
        "    time.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"started\n"
    process.kill()
    assert process.communicate(timeout=60) == (b"", None)


def test_no_more_batches_are_held_than_asked_for():
    taken = []

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    results = map_in_order(InlinePool(), lambda i: -i, items(), 3)
    assert next(results) == (0, 0)
    assert len(taken) == 3
    assert list(results)[-1][0] == 19
