"""The results as text: a JSON file with everything, and Markdown tables of what one reads first."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from . import goals, variants_report
from .ceilings import UNITS

SHARES = ("of bf16", "of tf32", "of fadd", "of copy")
PREFIX = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def rate(value: float, unit: str) -> str:
    scale, prefix = next(((s, p) for s, p in PREFIX if value >= s), PREFIX[-1])
    return f"{value / scale:.3g} {prefix}{unit}"


def table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def listed(reasons: dict[str, str]) -> str:
    """Reasons once, with how many things have each and the first three."""
    grouped: dict[str, list[str]] = {}
    for what, why in reasons.items():
        grouped.setdefault(why, []).append(what)
    return "\n".join(
        f"- {'; '.join(what[:3])}{f' and {len(what) - 3} more' if len(what) > 3 else ''}: {why}"
        for why, what in grouped.items()
    )


def environment(found: dict) -> str:
    return table(("", ""), [(key, value) for key, value in found.items() if value is not None])


def ceilings(found: dict) -> str:
    return table(
        ("ceiling", "measured"),
        [(name, rate(value, UNITS[name]) if isinstance(value, float) else value) for name, value in found.items()],
    )


def correctness(found: dict) -> str:
    costs = list(dict.fromkeys(row["cost"] for row in found["worst"]))
    worst: dict[tuple[str, str], dict[str, str]] = {}
    for row in found["worst"]:
        worst.setdefault((row["backend"], row["reduction"]), {})[row["cost"]] = f"{row['worst']:.2g}"
    text = f"{found['checks']} checks of {found['rows']} rows; the largest error of each, 1 = float32 rounding.\n\n"
    text += table(("", *costs), [(" ".join(key), *(by.get(cost, "–") for cost in costs)) for key, by in worst.items()])
    return "\n\n".join(part for part in (text, listed(found["refused"]), listed(found["left_out"])) if part)


def invariance(found: dict) -> str:
    text = table(("checked", "times"), list(found["made"].items()))
    return "\n\n".join(part for part in (text, listed(found["left_out"])) if part)


def variants(found: dict) -> str:
    """A table a step, what to paste into the launch tables, and what has no time."""
    steps = [name for name in variants_report.ROWS if name in found]
    tables = {name: variants_report.ROWS[name](found[name]) for name in steps}
    text = [table(variants_report.HEADERS[name], rows) for name, rows in tables.items() if rows]
    text += [variants_report.literals(found), listed(variants_report.absent(found))]
    return "\n\n".join(part for part in text if part)


def shares(result: dict) -> str:
    return ", ".join(f"{100 * result[key]:.0f} % {key}" for key in SHARES if key in result)


def timed(row: dict) -> Iterator[tuple]:
    """The lines of one problem, fastest first."""
    timed = {name: result for name, result in row["results"].items() if "seconds" in result}
    ours = timed.get("fastsdot", {}).get("seconds")
    for name, result in sorted(timed.items(), key=lambda item: item[1]["seconds"]):
        label = f"{name} → {row['chosen']}" if name == "fastsdot" else name
        ratio = f"{result['seconds'] / ours:.2f}" if ours else "–"
        regret = f"{result['regret']:.1g}" if "regret" in result else ""
        memory = f"{100 * result['extra_share']:.1f} %" if "extra_share" in result else ""
        yield row["row"], label, f"{1e3 * result['seconds']:.4g}", ratio, shares(result), regret, memory


def timings(found: dict) -> str:
    header = ("problem", "who", "ms", "× ours", "of the ceilings", "regret", "extra memory / 4BN")
    text = table(header, [line for row in found["rows"] for line in timed(row)])
    absent = {
        f"{name} ({row['row']})": result["absent"]
        for row in found["rows"]
        for name, result in row["results"].items()
        if "absent" in result
    }
    return "\n\n".join(part for part in (text, listed(absent), listed(found["left_out"])) if part)


def figures(found: dict) -> str:
    """A line for each entry and its numbers."""
    shown = []
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
        shown.append((name, value))
    return table(("", ""), shown)


def race(found: dict) -> str:
    """Who arrived when, the first first; a rival that did not arrive has its time."""

    def arrived(entry: dict, bound: str) -> str:
        time = entry["times"][bound]
        return f"{time:.3g}" if time is not None else f"> {entry['curve'][-1][found['measure']]:.3g}"

    bounds = list(next(iter(found["contestants"].values()))["times"])
    ran = {name: entry for name, entry in found["contestants"].items() if entry["curve"]}
    order = sorted(ran, key=lambda name: ran[name]["times"][bounds[0]] or float("inf"))
    header = ("who", *(f"{found['measure']} to χ² ≤ {bound}" for bound in bounds), "least χ²", "rate", "rates tried")
    rows = [
        (name, *(arrived(ran[name], bound) for bound in bounds),
         f"{min(point['chi2'] for point in ran[name]['curve']):.3g}", ran[name]["rate"], ran[name]["tried"])
        for name in order
    ]  # fmt: skip
    absent = {name: entry["absent"] for name, entry in found["contestants"].items() if "absent" in entry}
    return "\n\n".join(part for part in (f"N(0, I) to {found['name']}", table(header, rows), listed(absent)) if part)


def large(found: dict) -> str:
    tables = {name: found[name] for name in ("batches", "did not fit") if found.get(name)}
    tables |= {"solved": {f"{entry['n']} targets": entry for entry in found.get("smaller", ())}}
    rest = {name: value for name, value in found.items() if name not in (*tables, "smaller")}
    return "\n\n".join(figures(part) for part in (rest, *tables.values()))


def cifar(found: dict) -> str:
    keys = ("round", "seconds", "w", "w_error", "primal", "chi2", "fit_loss", "samples")
    rows = [tuple(f"{entry[key]:.4g}" if entry[key] is not None else "" for key in keys) for entry in found["history"]]
    rest = {name: value for name, value in found.items() if name != "history"}
    return f"{figures(rest)}\n\n{table(keys, rows)}"


SECTIONS = {
    "environment": environment,
    "ceilings": ceilings,
    "correctness": correctness,
    "invariance": invariance,
    "lists": figures,
    "timings": timings,
    "solver": figures,
    "sanitizer": figures,
    "variants": variants,
    "race": race,
    "large": large,
    "cifar": cifar,
    "runs": figures,
    "pictures": figures,
    "seconds": figures,
}


def markdown(results: dict) -> str:
    failures = results["failures"]
    verdict = "\n".join(f"- {failure}" for failure in failures) if failures else "none"
    parts = [f"# {results['title']}", f"## Failures\n\n{verdict}"]
    if not results["environment"]["small"]:
        parts.append(f"## goals\n\n{table(('what', 'wanted', 'measured', ''), goals.lines(results))}")
    parts += [f"## {name}\n\n{shown(show, results[name])}" for name, show in SECTIONS.items() if name in results]
    return "\n\n".join(parts) + "\n"


def shown(show: Callable[[dict], str], found: dict) -> str:
    """A part's section, or what there is of one that was cut short."""
    try:
        return show(found)
    except LookupError:
        return figures(found)


def write(folder: Path, results: dict) -> None:
    """`results.json` and `README.md`, after every part, so that what was measured is kept whatever comes next."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "README.md").write_text(markdown(results))
