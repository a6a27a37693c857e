"""Results of several runs of the suite as one: each part as it was measured last, and which run that was.

A machine may be there for minutes at a time, so that parts are measured in calls of their own, and some again.
"""

import json
from pathlib import Path

from .session import Session


def begin(session: Session, title: str, environment: dict) -> dict:
    """The results of a run that has measured nothing yet."""
    return {"title": title, "failures": session.failures, "environment": environment, "runs": {}, "seconds": {}}


def of(results: dict) -> dict[str, str]:
    """What a part is labelled with: when its run began, and of which sources."""
    about = results["environment"]
    return {key: about[key] for key in ("date", "commit", "sources")}


def read(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.is_file() else None


def joined(before: dict | None, after: dict) -> dict:
    """The parts of both, of two the later that was measured, with the failures of those that stay.

    Results of tiny problems and of others are not joined: the later stay alone.
    """
    if before is None or before["environment"]["small"] != after["environment"]["small"]:
        return after
    # what could not be measured replaces nothing that was
    late = [part for part in after["runs"] if part in before["runs"] and set(after.get(part, ())) == {"absent"}]
    after = {key: value for key, value in after.items() if key not in late}
    for key in ("runs", "seconds"):
        after[key] = {part: value for part, value in after[key].items() if part not in late}
    again = tuple(f"{part}:" for part in after["runs"])
    stay = [failure for failure in before["failures"] if not failure.startswith(again)]
    both = {key: before[key] | after[key] for key in ("runs", "seconds")}
    return before | after | both | {"failures": stay + after["failures"]}
