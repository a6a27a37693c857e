"""An assignment of M samples to targets that have room for whole numbers of them: an auction over short lists.

Prices p_j ≥ 0 are added to the margins s_ij = c(x_i, y_j) − ψ_j − φ(x_i) ≥ 0. A sample asks for the target with the
smallest s_ij + p_j, and is willing to pay, there, up to what makes its second choice as good, and ε more. A target that
is asked for by more than it has room for keeps those who pay most, and its price is the lowest of what they pay. In the
end every target is full, every sample is within ε of its best choice, and the whole costs at most ε a sample more than
the cheapest assignment. Choices outside a list are bounded from below; a sample whose list is used up waits for a new
one.

Source: Bertsekas & Castañon, Annals of Operations Research 20, 1989 (the auction for transportation problems).
"""

import numpy as np

from fastsdot.kernels.cached import compiled

NONE = -1


@compiled()
def _meld(a: int, b: int, level: np.ndarray, left: np.ndarray, right: np.ndarray) -> int:
    """Join two skew heaps of samples, smallest level on top."""
    root = parent = NONE
    while a != NONE and b != NONE:
        if level[b] < level[a]:
            a, b = b, a
        follower = right[a]
        right[a] = left[a]
        if parent == NONE:
            root = a
        else:
            left[parent] = a
        parent, a = a, follower
    rest = a if a != NONE else b
    if parent == NONE:
        return rest
    left[parent] = rest
    return root


@compiled()
def _choose(margin: np.ndarray, column: np.ndarray, price: np.ndarray, outside: float) -> tuple[int, float, float]:
    """The slot of the best choice, its s + p, and that of the second or of the best outside the list."""
    best, first, second = NONE, np.inf, np.float64(outside)
    for k in range(column.shape[0]):
        value = margin[k] + price[column[k]]
        if value < first:
            best, first, second = k, value, min(first, second)
        elif value < second:
            second = value
    return best, first, second


@compiled()
def _serve(margin, column, outside, room, price, epsilon, slot, heaps, root, held, queue, ring, waiting, most):
    """Let the queue bid until it is empty or `most` bids were made; ring is [first, length, how many wait]."""
    level, left, right = heaps
    bids, size = 0, queue.shape[0]
    while ring[1] and bids < most:
        bids += 1
        i = queue[ring[0]]
        ring[0], ring[1] = (ring[0] + 1) % size, ring[1] - 1
        k, first, second = _choose(margin[i], column[i], price, outside[i])
        if first > outside[i]:
            waiting[ring[2]] = i
            ring[2] += 1
            continue
        j = column[i, k]
        spread = second - first if second < np.inf else 0.0  # there is no other target
        slot[i], level[i], left[i], right[i] = k, price[j] + spread + epsilon, NONE, NONE
        root[j] = _meld(root[j], i, level, left, right)
        held[j] += 1
        if held[j] > room[j]:
            lowest = root[j]
            price[j] = max(price[j], level[lowest])
            root[j] = _meld(left[lowest], right[lowest], level, left, right)
            slot[lowest] = NONE
            held[j] -= 1
            queue[(ring[0] + ring[1]) % size] = lowest
            ring[1] += 1
        if held[j] == room[j] and held[j]:
            price[j] = max(price[j], level[root[j]])
    return bids


@compiled()
def _best(margin, column, outside, price, out):
    for i in range(out.shape[0]):
        _, first, second = _choose(margin[i], column[i], price, outside[i])
        out[i] = min(first, second)


class Auction:
    """M samples with lists of K targets each, and room [N] in whole numbers whose sum is M.

    margin [M, K] float32, column [M, K] int32, outside [M]: a lower bound of s_ij + p_j for targets outside the list.
    Lists may be changed in place between calls. slot [M] is where a sample's target stands in its list, −1 for none.
    """

    def __init__(self, margin: np.ndarray, column: np.ndarray, outside: np.ndarray, room: np.ndarray):
        self.margin, self.column, self.outside, self.room = margin, column, outside, room
        samples = margin.shape[0]
        self.price = np.zeros(room.shape[0])
        self.slot, self.queue, self.waiting = (np.empty(samples, np.int32) for _ in range(3))
        self.heaps = np.empty(samples), np.empty(samples, np.int32), np.empty(samples, np.int32)
        self.restart()

    def restart(self) -> None:
        """Take every sample back, and keep the prices."""
        samples = self.slot.shape[0]
        self.root, self.held = np.full(self.room.shape, NONE, np.int32), np.zeros(self.room.shape, np.int64)
        self.slot[:], self.queue[:], self.ring = NONE, np.arange(samples), np.array([0, samples, 0])

    def serve(self, epsilon: float, most: int) -> int:
        """Let the queue bid; returns the number of bids, at most `most`."""
        return _serve(
            self.margin, self.column, self.outside, self.room, self.price, epsilon, self.slot, self.heaps, self.root,
            self.held, self.queue, self.ring, self.waiting, most,
        )  # fmt: skip

    def unplaced(self) -> int:
        return int(self.ring[1] + self.ring[2])

    def used_up(self) -> np.ndarray:
        """The samples whose list is used up; they go back to the queue."""
        first, length, count = self.ring
        rows = self.waiting[:count].copy()
        self.queue[(first + length + np.arange(count)) % self.queue.shape[0]] = rows
        self.ring[1:] = length + count, 0
        return rows

    def best(self) -> np.ndarray:
        """min_j s_ij + p_j, or a lower bound of it where the list is used up: [M]."""
        out = np.empty(self.slot.shape[0])
        _best(self.margin, self.column, self.outside, self.price, out)
        return out
