"""Benchmarks run only when asked for (`pytest benchmarks/ --benchmark-only`) and end with a table of ratios."""

import pytest

ROWS = pytest.StashKey[dict[str, dict[str, float | str]]]()


def pytest_configure(config):
    config.stash[ROWS] = {}


def pytest_collection_modifyitems(config, items):
    if not config.getoption("benchmark_only", default=False):
        for item in items:
            item.add_marker(pytest.mark.skip(reason="benchmarks run with --benchmark-only"))


@pytest.fixture
def row(request):
    """Record seconds, or the reason for their absence, under (problem, contestant)."""

    def record(problem, contestant: str, result: float | str) -> None:
        request.config.stash[ROWS].setdefault(str(problem), {})[contestant] = result

    return record


def pytest_terminal_summary(terminalreporter, config):
    for problem, results in config.stash[ROWS].items():
        terminalreporter.section(problem, sep="-")
        timed = {name: value for name, value in results.items() if isinstance(value, float)}
        ours = timed.get("fastsdot", min(timed.values(), default=1.0))
        for name, seconds in sorted(timed.items(), key=lambda item: item[1]):
            terminalreporter.line(f"{name:24}{1e3 * seconds:11.2f} ms {seconds / ours:9.2f} × ours")
        for name in (name for name in results if name not in timed):
            terminalreporter.line(f"{name:24}{'–':>11}    {results[name]}")
