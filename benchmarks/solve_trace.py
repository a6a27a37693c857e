"""What a solve asks of the kernels and of torch, counted on a CPU, and the time that it would take at a GPU's peaks.

    python benchmarks/solve_trace.py fashion60000-noise-sqeuclidean --data-dir DIR --json trace.json

The problem is a row of the suite. Kernels are counted by rows and k, torch's operators (without views) and those whose
result the host waits for by what asked for them: steps, fits or the rest. The prediction takes published peaks and
counts, for each call, what docs/gpu-kernels.md counts for the kernels; it leaves launches out and says how many.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import suite
import target_sets
import torch
from suite_problems import PROBLEMS
from target_sets import Files
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fastsdot import fitting, kernels, ots, stages
from fastsdot.kernels.triton_keep import MOST
from fastsdot.kernels.triton_topk import FINE

VIEWS = {"view", "_unsafe_view", "expand", "slice", "select", "t", "transpose", "permute", "unsqueeze", "squeeze"}
VIEWS |= {"alias", "detach", "as_strided", "split", "unbind", "diagonal", "empty", "new_empty", "empty_like"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount"}
PHASES = {(ots, "collect"): "steps", (fitting, "maximise"): "fits"}
# float16 products/s, lane instructions/s and bytes/s of an H100 SXM; instructions a coordinate
# of l1 in bytes, and by additions
PRODUCTS, LANES, BYTES = 495e12, 33.5e12, 3.35e12
BYTE_COORDINATE, PLAIN_COORDINATE = 0.286, 2.4
OPENED = 1.2  # parts for each target of a list, by docs/gpu-kernels.md


class Trace(TorchDispatchMode):
    """Counts while it is entered: `calls` of kernels, `operators` and `waits` by phase, and `seconds` in kernels."""

    def __init__(self):
        super().__init__()
        self.calls, self.operators, self.waits = Counter(), Counter(), Counter()
        self.seconds, self.phase = 0.0, "rest"

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name.split("::")[1]
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        self.operators[self.phase] += name not in VIEWS
        self.waits[self.phase] += name in WAITS or masked
        return function(*arguments, **options or {})

    def kernel(self, name: str, describe: Callable[..., tuple]) -> Callable:
        """The reduction of that name, counted by what `describe` says of its arguments, and not looked into."""
        function = getattr(kernels, name)

        def run(*arguments):
            self.calls[(name, *describe(*arguments))] += 1
            start = perf_counter()
            with _disable_current_modes():
                found = function(*arguments)
            self.seconds += perf_counter() - start
            return found

        return run

    def later(self, made: Callable) -> Callable:
        """A sampler whose batches are looked at together, as on a GPU."""

        def make(sampler, *arguments, later: bool = False) -> None:
            made(sampler, *arguments)
            sampler.later = later

        return make

    def during(self, function: Callable, phase: str) -> Callable:
        def run(*arguments):
            before, self.phase = self.phase, phase
            try:
                return function(*arguments)
            finally:
                self.phase = before

        return run


KERNELS: dict[str, Callable[..., tuple]] = {
    "topk": lambda x, targets, bias, k: (len(x), k),
    "margins": lambda x, targets, bias, value, wins: (len(x), wins),
    "soft_lists": lambda score, index, shift, temperature: tuple(score.shape),
    "best_of_lists": lambda score, index, shift: tuple(score.shape),
}


@contextmanager
def traced():
    trace = Trace()
    with ExitStack() as stack:
        for name, describe in KERNELS.items():
            stack.enter_context(patch.object(kernels, name, trace.kernel(name, describe)))
        for (module, name), phase in PHASES.items():
            stack.enter_context(patch.object(module, name, trace.during(getattr(module, name), phase)))
        made = trace.later(stages.Sampler.__init__)
        stack.enter_context(patch.object(stages.Sampler, "__init__", made))
        yield stack.enter_context(trace)


def seconds_at_peaks(call: tuple, n: int, d: int, cost: str) -> float:
    """Of one call on an H100: arithmetic of the bounds and bytes of what they leave, or one read of the lists twice."""
    name, rows, k = call
    if name in ("soft_lists", "best_of_lists"):
        return 16 * rows * k / BYTES
    each, of = (n, rows) if name == "margins" else (rows, n)  # margins: the roles are exchanged
    pairs = each * of
    if k > MOST:  # scores in blocks: three products, or two additions a coordinate, and selection by torch
        plain = pairs * d * PLAIN_COORDINATE / LANES if cost == "l1" else 3 * pairs * d / PRODUCTS
        return plain + 12 * pairs / BYTES
    screen = pairs * d * BYTE_COORDINATE / LANES if cost == "l1" else pairs * d / PRODUCTS
    opened = each * OPENED * k * FINE * d * 4
    bounds = 4 * 4 * pairs / FINE  # written once and read three times
    return screen + (opened + bounds) / BYTES


def table(trace: Trace, n: int, d: int, cost: str) -> str:
    """Calls of a kernel together, by k."""
    lines, groups = ["| kernel | k | calls | rows | seconds at the peaks |", "|---|---|---|---|---|"], {}
    for call, count in trace.calls.items():
        group = groups.setdefault((call[0], call[2]), [0, 0, 0.0])
        seconds = seconds_at_peaks(call, n, d, cost)
        for i, value in enumerate((1, call[1], seconds)):
            group[i] += count * value
    for (name, k), (calls, rows, seconds) in sorted(groups.items(), key=lambda item: -item[1][2]):
        lines.append(f"| {name} | {k} | {calls} | {rows:,} | {seconds:.3f} |")
    lines.append(f"| all | | | | {sum(group[2] for group in groups.values()):.3f} |")
    lines += ["", "| asked by | operators | waits |", "|---|---|---|"]
    lines += [f"| {phase} | {count} | {trace.waits[phase]} |" for phase, count in trace.operators.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=[problem.name for problem in PROBLEMS], metavar="PROBLEM")
    parser.add_argument("--max-samples", type=int, help="a target; by default until χ² ≤ 0.05 is certain")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--fashion", type=Path, default=target_sets.FASHION)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    problem = next(problem for problem in PROBLEMS if problem.name == options.problem)
    ot, source = suite.build(problem, Files(options.data_dir, suite.CACHE, options.fashion))
    torch.manual_seed(0)
    with traced() as trace:
        solution = ot.solve(source, max_samples=options.max_samples and options.max_samples * problem.n)
    d = ot.shape.numel()
    print(f"{problem.name}: {solution.samples} samples, χ² {solution.report.chi2:.4f}, {solution.reason}\n")
    print(table(trace, problem.n, d, problem.cost))
    if options.json:
        calls = [[*call, count] for call, count in trace.calls.items()]
        found = {"problem": problem.name, "n": problem.n, "d": d, "samples": solution.samples, "calls": calls}
        found |= {"operators": trace.operators, "waits": trace.waits, "chi2": solution.report.chi2}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
