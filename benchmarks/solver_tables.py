"""Put the results of the suite and of the races into a document, between its comments.

    python benchmarks/solver_tables.py suite.json races.json docs/solver.md

Replaced is what stands between `<!-- suite -->` or `<!-- races -->` and the next `<!-- end -->`.
"""

import argparse
import json
import re
from pathlib import Path

import races
from suite import GOAL

REASONS = {"CONVERGED": "yes", "MAX_SAMPLES": "no", "CALLBACK": "no"}


def about(machine: dict) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, load {machine['load']} at the end."


def missed(row: dict) -> bool:
    """Whether χ² is above the goal by more than two standard errors."""
    return "failed" in row or row["chi2"] - 2 * row["chi2_error"] > GOAL


def suite_table(found: dict) -> str:
    rows = found["rows"]
    lines = [
        f"{len(rows) - sum(map(missed, rows))} of {len(rows)} rows are at χ² ≤ {GOAL}, within two standard errors. "
        + about(found["machine"]),
        "",
        "| problem | N | D | χ² | least χ² | samples a target | seconds | converged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['name']} | {row['n']:,} | {row['d']:,} |"
        if "failed" in row:
            lines.append(f"{head} {row['failed'].splitlines()[0]} | | | | |")
            continue
        chi2 = f"{row['chi2']:.4f} ± {row['chi2_error']:.4f}"
        least = f"{row['least']:.3f}" if row["least"] else "0"
        lines.append(
            f"{head} {f'**{chi2}**' if missed(row) else chi2} | {least} | {row['samples_per_target']:.1f} |"
            f" {row['seconds']:.2f} | {REASONS[row['reason']]} |"
        )
    return "\n".join(lines) + "\n"


def races_table(found: dict) -> str:
    results = found["races"]
    lost = [result["name"] for result in results if not races.won(result)]
    head = f"Every rival took at least 10 times as long on {len(results) - len(lost)} of {len(results)}"
    head += f"; not on {', '.join(lost)}. " if lost else ". "
    return f"{head}{about(found['machine'])}\n\n{races.table(results)}"


def fill(text: str, name: str, content: str) -> str:
    """The text with what stands after `<!-- name -->` replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    filled, count = re.subn(pattern, lambda match: f"{match[1]}\n{content}\n{match[2]}", text, flags=re.S)
    if count != 1:
        raise SystemExit(f"expected one <!-- {name} --> with an <!-- end --> after it, found {count}")
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("races", type=Path)
    parser.add_argument("document", type=Path)
    options = parser.parse_args()
    text = fill(options.document.read_text(), "suite", suite_table(json.loads(options.suite.read_text())))
    text = fill(text, "races", races_table(json.loads(options.races.read_text())))
    options.document.write_text(text)


if __name__ == "__main__":
    main()
