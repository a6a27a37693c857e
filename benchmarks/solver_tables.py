"""Put the results of the suite and of the races into a document, between its comments.

    python benchmarks/solver_tables.py docs/solver.md --suite suite.json --races races.json --converged converged.md

Replaced is what stands between `<!-- suite -->`, say, and the next `<!-- end -->`.
"""

import argparse
import json
import re
from pathlib import Path

import races
from suite import GOAL


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
        "| problem | N | D | χ² | samples a target | seconds | converged |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['name']} | {row['n']:,} | {row['d']:,} |"
        if "failed" in row:
            lines.append(f"{head} {row['failed'].splitlines()[0]} | | | |")
            continue
        chi2 = f"{row['chi2']:.4f} ± {row['chi2_error']:.4f}"
        lines.append(
            f"{head} {f'**{chi2}**' if missed(row) else chi2} | {row['samples_per_target']:.1f} |"
            f" {row['seconds']:.2f} | {'yes' if row['reason'] == 'CONVERGED' else 'no'} |"
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


TABLES = {
    "suite": lambda path: suite_table(json.loads(path.read_text())),
    "races": lambda path: races_table(json.loads(path.read_text())),
    "converged": Path.read_text,  # what benchmarks/converged.py printed
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("document", type=Path)
    for name in TABLES:
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    for name, table in TABLES.items():
        path = getattr(options, name)
        if path is not None:
            options.document.write_text(fill(options.document.read_text(), name, table(path)))


if __name__ == "__main__":
    main()
