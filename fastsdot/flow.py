"""From an assignment of samples to a coupling with exact marginals: masses move along shortest paths of targets.

A piece of sample i that target u holds can move to any target v of the sample's list, which costs
(s_iv + p_v) − (s_iu + p_u), about 0 or more for prices p under which the assignment is near the cheapest. From a target
that holds too much, Dijkstra's algorithm finds the cheapest chain of moves to the nearest one with room; then prices
move by the distances, so that the next search starts from them (successive shortest paths: Ahuja, Magnanti & Orlin,
Network Flows, 1993, section 9.7).
"""

import heapq

import numpy as np

from fastsdot.kernels.cached import compiled

NONE, TOLERANCE = -1, 1e-9  # masses are exact to a billionth of a sample


@compiled()
def _search(start, lists, pieces, head, price, over, distance, via, seen, limit):
    """Distances until a target with room is settled: (that target or −1, targets seen, pieces looked at).

    What lies beyond the nearest target with room that was seen so far is left out; lists ascend, and prices are at
    least `least`, which ends most of them after a choice or two.
    """
    margin, column, least = lists
    row, slot, _, after = pieces
    looked, heap, bound = 0, [(0.0, start)], np.inf
    distance[start], seen[0] = 0.0, start
    found = 1
    while len(heap):
        length, u = heapq.heappop(heap)
        if length > distance[u]:
            continue
        if over[u] < -TOLERANCE:
            return u, found, looked
        piece = head[u]
        while piece != NONE:
            i = row[piece]
            here, looked = margin[i, slot[piece]] + price[u], looked + 1
            for k in range(column.shape[1]):
                if length + margin[i, k] + least - here >= bound:
                    break
                v = np.int64(column[i, k])
                there = length + max(0.0, margin[i, k] + price[v] - here)
                if there < distance[v] and there < bound:
                    if distance[v] == np.inf:
                        seen[found] = v
                        found += 1
                    distance[v], via[v, 0], via[v, 1], via[v, 2] = there, u, piece, k
                    heapq.heappush(heap, (there, v))
                    if over[v] < -TOLERANCE:
                        bound = there
            piece = after[piece]
        if looked > limit:
            break
    return NONE, found, looked


@compiled()
def _detach(piece, u, head, after):
    if head[u] == piece:
        head[u] = after[piece]
        return
    before = head[u]
    while after[before] != piece:
        before = after[before]
    after[before] = after[piece]


@compiled()
def _move(start, end, amount, pieces, head, via, spare):
    """Shift an amount along the path; a target holds one piece of a sample, and spare is [first, how many]."""
    row, slot, mass, after = pieces
    v = end
    while v != start:
        u, piece, k = via[v]
        held = head[v]
        while held != NONE and row[held] != row[piece]:
            held = after[held]
        if held == NONE:
            held = spare[0]
            spare[0], spare[1] = after[held], spare[1] - 1
            row[held], slot[held], mass[held], after[held], head[v] = row[piece], k, 0.0, head[v], held
        mass[held] += amount
        mass[piece] -= amount
        if mass[piece] <= TOLERANCE:
            mass[held] += mass[piece]
            _detach(piece, u, head, after)
            mass[piece], after[piece] = 0.0, spare[0]
            spare[0], spare[1] = piece, spare[1] + 1
        v = u


@compiled()
def _shift(lists, pieces, head, price, over, spare, work):
    """Serve targets that hold too much, one path at a time, until none is left, work is done or pieces run out."""
    n = head.shape[0]
    distance, via, seen = np.full(n, np.inf), np.empty((n, 3), np.int64), np.empty(n, np.int64)
    mass = pieces[2]
    for start in range(n):
        while over[start] > TOLERANCE and work > 0 and spare[1] >= n:
            end, found, looked = _search(start, lists, pieces, head, price, over, distance, via, seen, work)
            work -= looked
            if end != NONE:
                amount, v = min(over[start], -over[end]), end
                while v != start:
                    amount, v = min(amount, mass[via[v, 1]]), via[v, 0]
                _move(start, end, amount, pieces, head, via, spare)
                over[start] -= amount
                over[end] += amount
                for v in seen[:found]:
                    price[v] += max(0.0, distance[end] - distance[v])
            distance[seen[:found]] = np.inf
            if end == NONE:
                break


@compiled()
def _trim(pieces, head, over):
    """Take what targets still hold too much of away."""
    _, _, mass, after = pieces
    for u in range(head.shape[0]):
        piece = head[u]
        while over[u] > TOLERANCE and piece != NONE:
            amount = min(over[u], mass[piece])
            mass[piece] -= amount
            over[u] -= amount
            piece = after[piece]


def shift(
    margin: np.ndarray, column: np.ndarray, slot: np.ndarray, price: np.ndarray, room: np.ndarray, work: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sample, slot of its list, mass) of a coupling that gives no target more than its room [N]; prices follow.

    margin [M, K] ascends; slot [M] is the assignment, −1 for a sample without a target; `work` bounds the pieces looked
    at. Where the lists join no target with room, or work ends, mass is left out.
    """
    (placed,) = (slot >= 0).nonzero()
    target, used = column[placed, slot[placed]], placed.shape[0]
    size = 2 * slot.shape[0] + 64 * room.shape[0]
    row, place, mass = np.empty(size, np.int32), np.empty(size, np.int32), np.zeros(size)
    row[:used], place[:used], mass[:used] = placed, slot[placed], 1.0
    after, head = _chains(target, size, room.shape[0])
    over = np.bincount(target, minlength=room.shape[0]) - room
    pieces, spare = (row, place, mass, after), np.array([used, size - used])
    _shift((margin, column, price.min()), pieces, head, price, over, spare, work)
    _trim(pieces, head, over)
    kept = mass > 0
    return row[kept], place[kept], mass[kept]


@compiled()
def _chains(target, size, n):
    """Lists of pieces by target, and of the pieces to spare behind them: the next of each, and the first."""
    after, head = np.arange(1, size + 1).astype(np.int32), np.full(n, NONE, np.int32)
    for piece in range(target.shape[0]):
        after[piece], head[target[piece]] = head[target[piece]], piece
    return after, head


@compiled()
def place(order: np.ndarray, margin: np.ndarray, column: np.ndarray, left: np.ndarray, free: np.ndarray) -> float:
    """Fill what is free [N] with what is left [L], choices of the lists [L, K] in `order`; returns Σ mass × margin."""
    total, width = 0.0, column.shape[1]
    for choice in order:
        i, k = choice // width, choice % width
        mass = min(left[i], free[column[i, k]])
        left[i] -= mass
        free[column[i, k]] -= mass
        total += mass * margin[i, k]
    return total


def corner(supply: np.ndarray, demand: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The north-west corner rule: (row, column, mass) of a coupling of two measures of equal mass."""
    rows, columns = supply.nonzero()[0], demand.nonzero()[0]
    if not rows.size or not columns.size:
        return rows[:0], columns[:0], supply[:0]
    right, below = supply[rows].cumsum(), demand[columns].cumsum()
    below *= right[-1] / below[-1]
    cuts = np.union1d(right, below)
    mass = np.diff(cuts, prepend=0.0)
    middle = cuts - mass / 2
    i = np.searchsorted(right, middle).clip(max=rows.size - 1)
    j = np.searchsorted(below, middle).clip(max=columns.size - 1)
    return rows[i], columns[j], mass
