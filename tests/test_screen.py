"""The certified screen: its bounds are bounds, and what it returns is the float64 argmin, whatever the data."""

import threading
import tracemalloc

import pytest
import torch
from compare import assert_argmin, reference, regret
from kernel_cases import CPU, problem

from fastsdot.costs import make_cost
from fastsdot.kernels import Form, argmin, gemm, naive, prepare, refusal, screen

INNER = Form("inner", scale=2.0)
pytestmark = pytest.mark.skipif(
    refusal("screen", INNER, "argmin", CPU, 1000, 10) is not None,
    reason=str(refusal("screen", INNER, "argmin", CPU, 1000, 10)),
)

B, N, D = 40, 3001, 97


def residual(v):
    unit = v.abs().amax(1, keepdim=True) / 127
    return v - unit * (v / unit).round()


def squares(x, y):
    return x, y, y.square().sum(1)


def near_ties(g):
    """Scores that differ by the last bits of float32."""
    y = torch.randn(1, D, generator=g) * (1 + 2.0**-23 * torch.randint(-2, 3, (N, D), generator=g))
    return squares(torch.randn(B, D, generator=g), y)


def aligned(g):
    """Samples along the error of a target's code, where the bound leaves no room, and the reverse."""
    y = torch.randn(N, D, generator=g)
    x = torch.cat([1e3 * residual(y)[: B // 2], torch.randn(B // 2, D, generator=g)])
    y[-B // 2 :] = 1e3 * residual(x[B // 2 :])
    return x, y, torch.zeros(N)


def clustered(g):
    centre = torch.randn(10, D, generator=g)
    x, y = (centre[torch.arange(n) % 10] + 1e-3 * torch.randn(n, D, generator=g) for n in (B, N))
    return squares(x, y)


def gaussian(g, scale=1.0, mean=0.0):
    return squares(*(mean + scale * torch.randn(n, D, generator=g) for n in (B, N)))


def heavy_tailed(g):
    x, y = (torch.randn(n, D, generator=g) / torch.randn(n, D, generator=g).abs() for n in (B, N))
    return squares(x, y)


def duplicated(g):
    x, y, bias = gaussian(g)
    return x, y[:100].repeat(31, 1)[:N], bias[:100].repeat(31)[:N]


def level(g):
    """Samples near one point and biases that make up for it, as after a solve: only the small differences decide."""
    x, y, _ = gaussian(g)
    x = 1 + 0.02 * x
    return x, y, 2 * y @ x.mean(0)


FAMILIES = {
    "gaussian": gaussian,
    "clustered": clustered,
    "duplicated": duplicated,
    "offset": lambda g: gaussian(g, mean=1e3),
    "tiny": lambda g: gaussian(g, 1e-4),
    "minute": lambda g: gaussian(g, 1e-18),
    "large scores": lambda g: gaussian(g, 20.0),
    "heavy tails": heavy_tailed,
    "bytes": lambda g: squares(*(torch.randint(0, 256, (n, D), generator=g) / 255 for n in (B, N))),
    "near ties": near_ties,
    "aligned": aligned,
    "level": level,
    "large bias": lambda g: (*gaussian(g)[:2], 1e6 + 10 * torch.randn(N, generator=g)),
    "zeros": lambda g: (torch.zeros(B, D), torch.zeros(N, D), torch.zeros(N)),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def make(family):
    return FAMILIES[family](torch.Generator().manual_seed(0))


def assert_float64(x, y, bias, value, index):
    """Regret within the rounding of float64, far below what float32 is allowed."""
    score, size = reference(x, y, bias, INNER), 2 * x.double().norm(dim=1) * y.double().norm(dim=1).max()
    assert (regret(score, index) <= 2.0**-44 * (size + bias[bias < torch.inf].double().abs().max())).all()
    assert torch.allclose(value.double(), score.amin(1), rtol=2.0**-23, atol=float(2.0**-44 * size.max()) + 1e-45)


@every_family
def test_the_result_is_the_argmin_in_float64(family):
    x, y, bias = make(family)
    layout = screen.prepare(y, INNER)
    for rows in (B, 8, 5, 1):
        found = screen.argmin(x[:rows], layout, bias, INNER)
        assert_argmin(x[:rows], y, bias, INNER, *found)
        assert_float64(x[:rows], y, bias, *found)


@every_family
@pytest.mark.parametrize("centred", [1, 1000], ids=["about the mean", "about zero"])
def test_bounds_are_below_the_scores(monkeypatch, family, centred):
    monkeypatch.setattr(screen, "CENTRED", centred)
    x, y, bias = make(family)
    problem = screen.Problem(x, screen.prepare(y, INNER), bias, INNER)
    score = reference(x, y, bias, INNER)
    panels = torch.nn.functional.pad(score, (0, -N % screen.LANES), value=torch.inf).view(B, -1, screen.LANES)
    assert problem.certain.all()
    assert (torch.from_numpy(problem.lowest()).double().T[:B] <= panels.amin(2)).all()


@pytest.mark.parametrize(("family", "most"), [("gaussian", 40), ("level", 40), ("bytes", 40), ("aligned", 300)])
def test_few_targets_are_left_to_be_scored_exactly(family, most):
    x, y, bias = make(family)
    count = screen.certify(x, screen.prepare(y, INNER), bias, INNER)[2]
    assert count.min() >= 1
    assert count.float().mean() <= most


def test_a_common_mean_of_the_samples_does_not_blunt_the_bounds(monkeypatch):
    x, y, bias = make("level")
    layout = screen.prepare(y, INNER)
    sharp = screen.certify(x, layout, bias, INNER)
    monkeypatch.setattr(screen, "CENTRED", 1000)
    blunt = screen.certify(x, layout, bias, INNER)
    assert all(map(torch.equal, sharp[:2], blunt[:2]))
    assert 20 * sharp[2].sum() < blunt[2].sum()


@every_family
def test_rows_threads_and_tasks_do_not_change_a_bit(monkeypatch, family):
    x, y, bias = make(family)
    layout = screen.prepare(y, INNER)
    expected = screen.argmin(x, layout, bias, INNER)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    shuffled = screen.argmin(x[order], layout, bias, INNER)
    assert all(torch.equal(a[order], b) for a, b in zip(expected, shuffled, strict=True))
    for rows in (1, 3, 17):
        parts = zip(*(screen.argmin(part, layout, bias, INNER) for part in x.split(rows)), strict=True)
        assert all(torch.equal(a, torch.cat(b)) for a, b in zip(expected, parts, strict=True))
    threads = torch.get_num_threads()
    for name, value in {"TASK_PRODUCTS": 1, "BLOCK_BYTES": 1, "BOUNDS": 1, "TASKS": 3, "CENTRED": 1000}.items():
        monkeypatch.setattr(screen, name, value)
        torch.set_num_threads(1 if name == "BOUNDS" else 2)
        try:
            assert all(map(torch.equal, expected, screen.argmin(x, layout, bias, INNER)))
        finally:
            torch.set_num_threads(threads)


def test_equal_targets_give_the_smallest_index():
    x, y, bias = make("duplicated")
    index = screen.argmin(x, screen.prepare(y, INNER), bias, INNER)[1]
    assert torch.equal(index, reference(x, y[:100], bias[:100], INNER).argmin(1))


@pytest.mark.parametrize("dead", [slice(0, 1), slice(0, 480), slice(5, 3000), slice(1, None), slice(0, 3000)])
def test_an_infinite_bias_is_never_chosen(dead):
    x, y, bias = make("gaussian")
    bias[dead] = torch.inf
    found = screen.argmin(x, screen.prepare(y, INNER), bias, INNER)
    assert_float64(x, y, bias, *found)


def test_nothing_to_choose_from_is_infinite_as_in_gemm():
    x, y, bias = make("gaussian")
    bias[:] = torch.inf
    value, index, count = screen.certify(x, screen.prepare(y, INNER), bias, INNER)
    assert all(map(torch.equal, (value, index), gemm.argmin(x, [y], bias, INNER)))
    assert (count == 0).all()


def test_rows_without_bounds_are_scored_exactly_beside_others():
    x, y, bias = make("gaussian")
    x[3] *= 1e32
    value, index, count = screen.certify(x, screen.prepare(y, INNER), bias, INNER)
    assert_float64(x[3:4], y, bias, value[3:4], index[3:4])
    rest = torch.arange(B) != 3
    assert_float64(x[rest], y, bias, value[rest], index[rest])
    assert count[3] == N
    assert count[rest].float().mean() < 40


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("d", [1, 3, 4, 5, 16, 31, 200])
def test_dimensions_and_scales(d, scale):
    x, y, bias = problem(19, 777, d)
    form = Form("inner", scale=scale)
    assert_argmin(x, y, bias, form, *screen.argmin(x, screen.prepare(y, form), bias, form))


@pytest.mark.parametrize("cost", ["sqeuclidean", "dot", "cosine"])
def test_costs_choose_it_and_get_the_definition(cost):
    g = torch.Generator().manual_seed(0)
    x, y = (3 + torch.rand(n, 60, generator=g) for n in (B, 2000))
    c = make_cost(cost)
    e = c.embed_targets(y)
    targets = prepare(e.y, e.form)
    assert targets.plan == {"argmin": "screen", "softmin": "gemm", "soft_marginal": "gemm", "topk": "gemm"}
    index = argmin(c.embed(x, e.centre), targets, e.column)[1]
    expected = c(x[:, None].double(), y[None].double())
    assert (regret(expected, index) <= 1e-5 * expected.amin(1).abs() + 1e-6).all()


def test_float64_stays_float64_and_half_precision_goes_to_gemm():
    x, y, bias = (t.double() for t in make("gaussian"))
    value, index = screen.argmin(x, screen.prepare(y, INNER), bias, INNER)
    assert torch.allclose(value, reference(x, y, bias, INNER).amin(1), rtol=1e-13)
    assert torch.equal(index, naive.argmin(x, [y], bias, INNER)[1])
    x, y, bias = (t.bfloat16() for t in (x, y, bias))
    found = screen.argmin(x, screen.prepare(y, INNER), bias, INNER)
    assert all(map(torch.equal, found, gemm.argmin(x, [y], bias, INNER)))


def test_memory_is_a_small_part_of_the_scores():
    x, y, bias = problem(256, 50_000, 24)
    layout = screen.prepare(y, INNER)
    screen.argmin(x, layout, bias, INNER)
    tracemalloc.start()
    screen.argmin(x, layout, bias, INNER)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.06 * x.shape[0] * y.shape[0] * 4
    assert sum(t.numel() * t.element_size() for t in layout[1:]) < y.shape[0] * (24 + 20) * 1.01


def test_several_threads_may_call_at_once():
    x, y, bias = make("gaussian")
    layout = screen.prepare(y, INNER)
    expected, wrong = screen.argmin(x, layout, bias, INNER)[1], []

    def work():
        wrong.extend(1 for _ in range(20) if not torch.equal(screen.argmin(x, layout, bias, INNER)[1], expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not wrong


def test_few_targets_are_left_to_gemm_unless_it_is_named():
    y = torch.randn(999, 20)
    assert prepare(y, INNER).plan["argmin"] == "gemm"
    assert prepare(y, INNER, "screen").plan["argmin"] == "screen"


def test_refusals_say_why(monkeypatch):
    assert "power" in screen.refusal(Form("power"), "argmin", CPU, 10, 3)
    assert "cuda" in screen.refusal(INNER, "argmin", torch.device("cuda"), 10, 3)
    assert "topk" in screen.refusal(INNER, "topk", CPU, 10, 3)
    assert "32 bits" in screen.refusal(INNER, "argmin", CPU, 10, 200_000)
    monkeypatch.setattr(screen, "AVAILABLE", False)
    assert "VNNI" in screen.refusal(INNER, "argmin", CPU, 10, 3)
