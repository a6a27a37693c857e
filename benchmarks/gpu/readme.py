"""The few lines that a README gives, from the results of a run: nothing in them is written by hand."""

from collections.abc import Callable

from .goals import L1, LARGE, READ, Results, result
from .report import table

SOLVES = ("solve, sqeuclidean from N(0, I)", "solve, l1 from a generator")


def argmin(results: Results, row: str) -> str:
    """Milliseconds, the share of the ceiling that binds, and how many times as long each peer took."""
    ours = result(results, row)
    shares = {name: ours[f"of {name}"] for name in ("bf16", "fadd", "copy") if f"of {name}" in ours}
    binding = max(shares, key=shares.get)
    entries = next(entry["results"] for entry in results["timings"]["rows"] if entry["row"] == row)
    said = [f"{1e3 * ours['seconds']:.3g} ms, {100 * shares[binding]:.0f} % of {binding}"]
    for name, entry in entries.items():
        if not name.startswith("fastsdot") and "seconds" in entry:
            said.append(f"{name} {entry['seconds'] / ours['seconds']:.1f} ×")
    return "; ".join(said)


def solved(results: Results, name: str) -> str:
    found = results["solver"][name]
    reached = f"{found['seconds']:.3g} s, χ² {found['chi2']:.3f} ± {found['chi2_error']:.3f}"
    return reached if found["converged"] else f"not in {reached}"


def raced(results: Results) -> str:
    race = results["race"]
    ours = race["contestants"]["fastsdot"]["times"]["0.1"]
    if ours is None:
        raise LookupError("race")
    said = [f"{ours:.3g} s"]
    for name, entry in race["contestants"].items():
        if name != "fastsdot" and entry["curve"]:
            arrived, ran = entry["times"]["0.1"], entry["curve"][-1][race["measure"]]
            said.append(f"{name} {arrived / ours:.1f} ×" if arrived else f"{name} > {ran / ours:.1f} ×")
    return "; ".join(said)


def large(results: Results) -> str:
    found, how = results["large"]["extrapolated"], "as in the partial solve"
    return f"{found[f'minutes, {how}']:.3g} minutes, extrapolated: {found[f'arithmetic, {how}']}"


def cifar(results: Results) -> str:
    last, minutes = results["cifar"]["last"], results["cifar"]["seconds"] / 60
    return f"W₁ {last['w']:.1f} ± {last['w_error']:.1f} after {minutes:.3g} minutes, χ² {last['chi2']:.2g}"


LINES: dict[str, Callable[[Results], str]] = {
    **{row: lambda results, row=row: argmin(results, row) for row in (LARGE, READ, L1)},
    **{f"60 000 × 784, {name}": lambda results, name=name: solved(results, name) for name in SOLVES},
    "race to χ² ≤ 0.1 from N(0, I)": raced,
    "1.28e6 × 12 288 bytes to χ² ≤ 0.05": large,
    "CIFAR-10, 50 000 images, l1": cifar,
}


def line(results: Results, read: Callable[[Results], str]) -> str:
    try:
        return read(results)
    except (LookupError, ValueError):  # a part, a row or a solve that is not there
        return "not measured"


def device(results: Results) -> str:
    about = results["environment"]
    small = ", tiny problems whose times mean nothing" if about["small"] else ""
    return f"{about.get('device', 'CPU')}, torch {about['torch']}, {about['date'][:10]}{small}"


def summary(results: Results) -> str:
    """A Markdown table of what a reader asks first."""
    return table(("", device(results)), [(name, line(results, read)) for name, read in LINES.items()])
