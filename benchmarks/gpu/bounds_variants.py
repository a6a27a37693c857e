"""The float16 screen's first pass beside others that compute the same: operands by descriptors, specialised warps.

All get the operands that the library made for its own kernel, and are held to its bounds: two sums of the same products
differ by at most what the bounds allow for one of them twice (docs/certificate-gpu.md). The product in bfloat16 is
timed alone; what its bounds would lose is known without a GPU.
"""

from collections.abc import Callable, Iterator

import torch
from problems import Problem
from torch import Tensor

from fastsdot.costs import make_cost
from fastsdot.kernels import triton_screen, triton_screen_inner
from fastsdot.kernels.triton_launch import Launch, capability

from .recorded import Launched, recorded
from .session import CRASHES, Session, reason
from .tma_kernel import tile_bounds

SHAPES = ((256, 60_000, 784), (4096, 60_000, 784), (4096, 1_000_000, 784), (256, 1_000_000, 784), (64, 60_000, 784))
SMALL_SHAPES = ((9, 300, 24),)
SECONDS, SMALL_SECONDS = 1.0, 0.01
# By whether warps are specialised: such kernels are tried after the others, for they may wait for ever.
VARIANTS: dict[bool, tuple[Launch, ...]] = {
    False: (Launch(128, 256, 64, 8, 3), Launch(128, 256, 64, 8, 4), Launch(64, 128, 64, 4, 4)),
    True: (
        Launch(128, 256, 64, 4, 3),
        Launch(128, 256, 64, 4, 4),
        Launch(128, 128, 64, 4, 4),
        Launch(64, 128, 64, 4, 4),
    ),
}
SMALL_VARIANTS = (Launch(16, 64, 16, 4, 2),)
LEAST_CAPABILITY = 90  # tensor descriptors begin here
OUTPUTS = ("lower_ptr", "group_ptr")
RECORDED = (triton_screen_inner, "tile_bounds")


class Pass:
    """The first pass for one problem, by the library's kernel and any tile."""

    def __init__(self, session: Session, shape: tuple[int, int, int]):
        problem = Problem("sqeuclidean", *shape, str(session.device))
        cost = make_cost(problem.cost)
        embedding = cost.embed_targets(problem.y)
        self.x, self.form = cost.embed(problem.x, embedding.centre), embedding.form
        self.layout = triton_screen.prepare(embedding.y, self.form)
        self.lowered = triton_screen_inner.lower(self.x, self.layout, embedding.column, self.form)

    def launched(self, launch: Launch | None) -> Launched:
        """The library's launch of that tile, or of its own choice; its outputs are filled."""
        with recorded(RECORDED) as launches:
            triton_screen_inner.bounds_of(
                self.x, self.layout, self.lowered, self.form, launch, True, triton_screen.FINE
            )
        return launches[0]


def title(launch: Launch, specialised: bool) -> str:
    how = "specialised" if specialised else "descriptors"
    return f"{how}, {launch.rows}x{launch.columns}x{launch.depth}, {launch.stages} buffers"


def variant(launched: Launched, launch: Launch, specialised: bool) -> tuple[Callable[[], object], dict[str, Tensor]]:
    """The same launch by the kernel with descriptors, and its outputs."""
    outputs = {name: torch.full_like(launched.named[name], torch.nan) for name in OUTPUTS}
    arguments = launched.arguments | outputs | {"SPECIALISED": specialised}
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return lambda: tile_bounds[launched.grid](**arguments, **options), outputs


def difference(launched: Launched, outputs: dict[str, Tensor], n: int) -> tuple[float, float]:
    """The largest difference from the library's bounds: in units of what two sums may differ by, and in cost."""
    named = launched.named
    allowed = 2 * named["row_ptr"][2, : named["B"], None] * named["bound_ptr"][1].max()
    share, largest = 0.0, 0.0
    for name, count in (("lower_ptr", -(-n // named["FINE"])), ("group_ptr", named["groups"])):
        mine, own = outputs[name][:, :count], named[name][:, :count]  # past the last target nothing is defined
        apart = torch.where(mine == own, 0.0, (mine - own).abs()).nan_to_num(torch.inf)
        share, largest = max(share, float((apart / allowed).max())), max(largest, float(apart.max()))
    return share, largest


def allocate(session: Session) -> None:
    """Descriptors that a kernel makes lie in memory that Triton asks torch for."""
    import triton

    triton.set_allocator(lambda size, _, stream: torch.empty(size, dtype=torch.int8, device=session.device))


def contest(session: Session, shape: tuple[int, int, int], specialised: bool) -> dict[str, dict]:
    """{who: seconds and ratio to the library's choice, and how far its bounds are from the library's}."""
    held = Pass(session, shape)
    own = held.launched(None)
    tile = "x".join(str(own.named[size]) for size in ("BM", "BN", "BK"))
    found: dict[str, dict] = {"library": {"tile": tile}}
    runs = {"library": own.again()}
    if session.cuda and not specialised:  # the interpreter's products of bfloat16 are wrong
        codes = {name: own.named[name].bfloat16() for name in ("x_ptr", "y_ptr")}
        runs["bfloat16"] = own.again(**codes, **{name: own.named[name].clone() for name in OUTPUTS})
        runs["bfloat16"]()
        found["bfloat16"] = {}
    for launch in SMALL_VARIANTS if session.small else VARIANTS[specialised]:
        name = title(launch, specialised)
        try:
            base = held.launched(Launch(launch.rows, launch.columns, launch.depth, max(launch.warps, 8), 2))
            run, outputs = variant(base, launch, specialised)
            compiled = run()
            share, largest = difference(base, outputs, shape[1])
        except CRASHES as error:
            found[name] = {"absent": reason(error)[:160]}
            continue
        found[name] = {"share": share, "difference": largest}
        if compiled is not None:
            found[name] |= {"registers": compiled.n_regs, "spills": compiled.n_spills}
        if not share <= 1:
            session.failures.append(f"variants: {name}, {shape}: bounds off by {share:.3g} × what sums may differ by")
            continue
        runs[name] = run
    seconds = session.medians(runs, SMALL_SECONDS if session.small else SECONDS)
    for name, value in seconds.items():
        found[name] |= {"seconds": value, "ratio": value / seconds["library"]}
    return found


def run(session: Session, _: dict, specialised: bool = False) -> Iterator[tuple[str, object]]:
    """{problem: its contest}, or the reason why there is none."""
    if session.cuda and capability(session.device) < LEAST_CAPABILITY:
        yield "absent", f"tensor descriptors need compute capability {LEAST_CAPABILITY / 10}"
        return
    if session.cuda:
        allocate(session)
    for shape in SMALL_SHAPES if session.small else SHAPES:
        name = "B={}, N={}, D={}".format(*shape)
        if session.left < 0:
            yield name, {"absent": "it came after this part's time"}
            continue
        try:
            yield name, contest(session, shape, specialised)
        except CRASHES as error:
            session.failures.append(f"variants: bounds, {name}: {reason(error)}")
            yield name, {"absent": reason(error)}
