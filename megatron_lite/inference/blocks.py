"""Blocks of a key-value cache, as numbers: in whose tables they are, and which beginnings of texts they hold.

    free   holds nothing of use
    used   in the table of one sequence, or of several that begin alike
    kept   in no table, but full, and found again by what it holds; given away when no block is free, the least
           recently used first

Only full blocks are shared, so nobody writes into a block that another reads: there is nothing to copy on write. A full
block is known by its tokens and the block before it, exactly: a dictionary compares what it hashes.
"""

from collections.abc import Sequence
from itertools import count

Name = tuple[int, tuple[int, ...]]  # the number of the beginning before the block, its tokens

NOTHING = 0  # the number of the empty beginning


class Blocks:
    """`number` blocks of `size` positions each.

    A beginning has a number of its own, which is never given again. So a block whose ancestors were given away is
    not found, whatever it holds.
    """

    def __init__(self, number: int, size: int):
        self.number, self.size = number, size
        self.users = [0] * number  # tables that a block is in
        self._free = list(reversed(range(number)))
        self._kept: dict[int, None] = {}  # the least recently used first
        self._found: dict[Name, tuple[int, int]] = {}  # (block, number of the beginning that ends with it)
        self._names: dict[int, Name] = {}
        self._numbers = count(NOTHING + 1)

    @property
    def available(self) -> int:
        """How many can be taken: those that are free or kept."""
        return len(self._free) + len(self._kept)

    def find(self, tokens: Sequence[int], most: int) -> tuple[list[int], int]:
        """(blocks that hold the beginning of `tokens`, at most so many; that beginning's number)."""
        blocks: list[int] = []
        beginning = NOTHING
        for begin in range(0, most * self.size, self.size):
            found = self._found.get((beginning, tuple(tokens[begin : begin + self.size])))
            if found is None:
                break
            blocks.append(found[0])
            beginning = found[1]
        return blocks, beginning

    def unused(self, blocks: Sequence[int]) -> int:
        """How many of them are in no table, so that sharing them makes as many fewer available."""
        return sum(self.users[block] == 0 for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """Into one more table."""
        for block in blocks:
            self._kept.pop(block, None)
            self.users[block] += 1

    def take(self) -> int:
        """A block for new tokens, into one table; one must be available."""
        block = self._free.pop() if self._free else self._give_away()
        self.users[block] = 1
        return block

    def full(self, block: int, beginning: int, tokens: Sequence[int]) -> int:
        """The number of `beginning` and these tokens, which fill the block. Where another block holds the same, that
        one stays the one that is found.
        """
        name = (beginning, tuple(tokens))
        found = self._found.get(name)
        if found is not None:
            return found[1]
        number = next(self._numbers)
        self._found[name] = (block, number)
        self._names[block] = name
        return number

    def release(self, table: Sequence[int]) -> None:
        """Out of one table. Its end is given away before its beginning, without which the end is of no use."""
        for block in reversed(table):
            self.users[block] -= 1
            if self.users[block] == 0:
                if block in self._names:
                    self._kept[block] = None
                else:
                    self._free.append(block)

    def _give_away(self) -> int:
        block = next(iter(self._kept))
        del self._kept[block]
        del self._found[self._names.pop(block)]
        return block
