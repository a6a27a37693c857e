"""Which launches the tables should hold, by what a sweep measured: pure arithmetic on its rows.

A table's row is a few tiles of increasing rows, of which a batch takes the first that holds it, else the last. Of all
such rows the one is taken whose times, over those of the table as it is, have the smallest geometric mean. Batches that
were not measured keep their tiles, unless one that was measured takes the same tile now, and stands for them.
"""

import re
from itertools import combinations, pairwise
from math import exp, inf, log

BATCHES = (256, 1024, 4096, 64, 16)  # that a row is chosen for, the most important first
MOST = 3  # tiles in a row of a table
GAIN = 0.03  # below which a table stays as it is

Tile = tuple[int, ...]  # rows, columns, depth, warps, stages


def tile(literal: str) -> Tile:
    return tuple(int(number) for number in re.findall(r"\d+", literal))


def taken(tiles: tuple[Tile, ...], batch: int) -> Tile:
    """As the library chooses."""
    return next((entry for entry in tiles if entry[0] >= batch), tiles[-1])


def times(row: dict) -> dict[Tile, float]:
    """Ratios to the table's choice of what was timed, in a measured row."""
    return {tile(name): result["ratio"] for name, result in row["results"].items() if "ratio" in result}


def cost(tiles: tuple[Tile, ...], measured: list[tuple[int, dict[Tile, float]]]) -> float:
    """The geometric mean of ratios over batches; infinite where a tile that would be taken was not timed."""
    ratios = [found.get(taken(tiles, batch), inf) for batch, found in measured]
    return inf if inf in ratios else exp(sum(map(log, ratios)) / len(ratios))


def best(current: tuple[Tile, ...], measured: list[tuple[int, dict[Tile, float]]]) -> tuple[float, tuple[Tile, ...]]:
    every = sorted({entry for _, found in measured for entry in found} | set(current))
    replaced = {taken(current, batch) for batch, _ in measured}
    kept = [batch for batch in BATCHES if taken(current, batch) not in replaced]
    choices = (
        tiles
        for count in range(1, MOST + 1)
        for tiles in combinations(every, count)
        if all(a[0] < b[0] for a, b in pairwise(tiles))
        and all(taken(tiles, batch) == taken(current, batch) for batch in kept)
    )
    return min(((cost(tiles, measured), tiles) for tiles in choices), default=(inf, ()))


def suggested(rows: list[dict]) -> list[dict]:
    """For each table and family: the gain, and the row to put there as a literal, or that it stays as it is."""
    groups: dict[tuple[str, str, int], list[dict]] = {}
    for row in rows:
        if times(row):
            groups.setdefault((row["table"], row["family"], row["capability"]), []).append(row)
    found = []
    for (table, family, capability), group in groups.items():
        current = tuple(map(tile, group[0]["current"]))
        ratio, tiles = best(current, [(row["b"], times(row)) for row in group])
        launches = ", ".join(f"Launch({', '.join(map(str, entry))})" for entry in tiles)
        text = f'{table}["{family}"][{capability}] = ({launches}{"," * (len(tiles) == 1)})'
        entry = {"table": table, "family": family, "problems": len(group), "ratio": ratio}
        entry["batches"] = sorted({row["b"] for row in group})
        found.append(entry | {"literal": text if ratio < 1 - GAIN else None})
    return found


def programs(contests: dict) -> list[dict]:
    """As `suggested`, for the number of programs a multiprocessor, by whole reductions."""
    ran = [found for found in contests.values() if isinstance(found, dict) and "absent" not in found]
    timed = [{count: result["ratio"] for count, result in found.items() if "ratio" in result} for found in ran]
    counts = [count for count in (timed[0] if timed else ()) if all(count in found for found in timed)]
    means = {count: exp(sum(log(found[count]) for found in timed) / len(timed)) for count in counts}
    if not means:
        return []
    count = min(means, key=means.get)
    entry = {"table": "PROGRAMS", "family": "all", "problems": len(timed), "ratio": means[count]}
    return [entry | {"literal": f"PROGRAMS = {count}" if means[count] < 1 - GAIN else None}]


def winners(rows: list[dict]) -> list[tuple]:
    """The fastest of each measured row: problem, the table's choice and milliseconds, the best and its ratio."""
    lines = []
    for row in rows:
        timed = {name: result for name, result in row["results"].items() if "ratio" in result}
        if timed:
            name, result = min(timed.items(), key=lambda item: item[1]["seconds"])
            own = timed[row["chosen"]]["seconds"]
            lines.append((row["name"], row["chosen"], f"{1e3 * own:.4g}", name, f"{result['ratio']:.3f}"))
    return lines
