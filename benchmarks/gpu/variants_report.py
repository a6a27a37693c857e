"""What the variants were found to be, as tables."""

from . import launch_choice


def seconds(value: float) -> str:
    return f"{1e3 * value:.4g}"


def predictions(found: dict) -> list[tuple]:
    """Kernel, instructions a coordinate, its limit, predicted and measured milliseconds, their ratio."""
    lines = []
    if "bytes/s of the cache" in found:
        lines.append(("reads of the cache", "–", f"{found['bytes/s of the cache']:.3g} bytes/s", "–", "–", "–"))
    for name, result in found.items():
        if isinstance(result, dict) and "seconds" in result:
            each = result["instructions a coordinate"]
            limit = (result["limit"], seconds(result["floor"])) if "floor" in result else ("–", "–")
            shown = f"{each:.3f}" if isinstance(each, float) else each
            ratio = f"{result['ratio']:.2f}" if "ratio" in result else "–"
            lines.append((name, shown, *limit, seconds(result["seconds"]), ratio))
    return lines


def contests(found: dict) -> list[tuple]:
    """Problem, who, milliseconds, ratio to the library's kernel, and what else is known."""
    return [
        (problem, who, seconds(result["seconds"]), f"{result['ratio']:.3f}", others(result))
        for problem, entrants in found.items()
        if isinstance(entrants, dict)
        for who, result in entrants.items()
        if isinstance(result, dict) and "seconds" in result
    ]


def others(result: dict) -> str:
    known = {name: value for name, value in result.items() if name not in ("seconds", "ratio")}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in known.items()
    )


def absent(found: object, place: tuple[str, ...] = ()) -> dict[str, str]:
    """Every reason for a missing time, by where it is missing."""
    if isinstance(found, list):
        return {key: why for row in found for key, why in absent(row["results"], (*place, row["name"])).items()}
    if not isinstance(found, dict):
        return {}
    if "suggested" in found:
        found = {name: value for name, value in found.items() if name != "suggested"}
    own = {", ".join(place): found[key] for key in ("absent", "broke") if key in found}
    own |= {f"{', '.join(place)}: {what}": why for what, why in found.get("left_out", {}).items()}
    for name, value in found.items():
        own |= absent(value, place if name == "rows" else (*place, name)) if name != "left_out" else {}
    return own


def literals(found: dict) -> str:
    """What to paste into the tables, and what stays as it is."""
    lines = []
    for entry in found.get("suggested", ()):
        where, problems = f"{entry['table']}, {entry['family']}", f"{entry['problems']} problems"
        problems += f", B = {', '.join(map(str, entry['batches']))}" if "batches" in entry else ""
        what = f"# {where}: {entry['ratio']:.3f} of the time over {problems}"
        lines.append(what + (f"\n{entry['literal']}" if entry["literal"] else ", stays as it is"))
    return "```python\n" + "\n".join(lines) + "\n```" if lines else ""


HEADERS = {
    "predictions": (
        "kernel alone",
        "instructions a coordinate",
        "limit",
        "floor ms",
        "measured ms",
        "measured / floor",
    ),
    "bounds": ("the screen's first pass", "who", "ms", "× the library", ""),
    "specialised": ("the screen's first pass", "who", "ms", "× the library", ""),
    "gluon": ("l1's first pass", "who", "ms", "× the library", ""),
    "kept": ("the scores of a soft marginal", "how", "ms", "× computed again", ""),
    "splits": ("programs a multiprocessor", "how many", "ms", "× the library", ""),
    "launches": ("launches", "the table's", "ms", "best", "× the table's"),
}
ROWS = {
    "predictions": predictions,
    "bounds": contests,
    "specialised": contests,
    "gluon": contests,
    "kept": contests,
    "splits": contests,
    "launches": lambda found: launch_choice.winners(found.get("rows", [])),
}
