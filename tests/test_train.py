"""train: W falls, every way to stop, resuming bit for bit, killed runs, and folders that cannot be used."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fastsdot import InvalidArgument, Precision, RunError, SemiDiscreteOT, SourceError, Stop, checkpoint, theory, train
from fastsdot.networks import mlp

SMALL = {"rounds": 3, "steps": 30, "batch_size": 64, "max_samples": 1500}


def digits(n=150):
    return torch.from_numpy(load_digits().data[:n]).float() / 8 - 1


def run(seed=0, **options):
    torch.manual_seed(seed)
    return train(mlp(8, (64,), (64, 64)), digits(), 8, **(SMALL | options))


def same(a, b):
    assert torch.equal(a.ot.potential, b.ot.potential)
    for x, y in zip(a.generator.state_dict().values(), b.generator.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in a.history]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in b.history]


def test_the_transport_cost_falls_and_the_last_potential_belongs_to_the_last_generator():
    result = run(rounds=6, max_samples=None)
    w = [row["w"] for row in result.history]
    assert len(w) == 7
    assert w[0] > w[1] > w[3] > w[6]
    assert result.stop is Stop.ROUNDS
    assert result.history[0]["fit_loss"] is None
    assert result.history[-1]["converged"]
    assert result.report.chi2 == result.history[-1]["chi2"] <= 0.05


def test_a_half_precision_generator_is_trained_from_latents_of_its_dtype(tmp_path):
    torch.manual_seed(0)
    generator = mlp(8, (64,), (64, 64)).bfloat16()
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.2)
    result = train(generator, digits(), 8, optimizer=optimizer, cost="sqeuclidean", out=tmp_path, **SMALL)
    w = [row["w"] for row in result.history]
    assert w[-1] < 0.8 * w[0]
    assert {q.dtype for q in generator.parameters()} == {torch.bfloat16}
    saved = checkpoint.read(tmp_path / "checkpoint.safetensors")["generator"]
    assert all(torch.equal(saved[name], value) for name, value in generator.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"replay": 5}, {"perturbation": 0.01}])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, options):
    whole = run(**options)
    run(out=tmp_path, callback=lambda state: state.round == 1, **options)
    torch.manual_seed(99)  # what a new process would bring
    resumed = train(mlp(8, (64,), (64, 64)), digits(), 8, out=tmp_path, resume=True, **(SMALL | options))
    same(whole, resumed)


KILLED = """
import sys, torch
from sklearn.datasets import load_digits
from fastsdot import train
from fastsdot.networks import mlp
torch.manual_seed(0)
train(mlp(8, (64,), (64, 64)), torch.from_numpy(load_digits().data[:150]).float() / 8 - 1, 8, out=sys.argv[1],
      rounds=400, steps=30, batch_size=64, max_samples=1500)
"""


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    path = tmp_path / "run" / "checkpoint.safetensors"
    process = subprocess.Popen([sys.executable, "-c", KILLED, path.parent])
    deadline = time.monotonic() + 120
    while not path.exists() or len(checkpoint.read(path)["history"]) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = len(checkpoint.read(path)["history"])
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    resumed = train(
        mlp(8, (64,), (64, 64)), digits(), 8, out=path.parent, resume=True, **(SMALL | {"rounds": reached + 1})
    )
    assert torch.get_num_threads() == threads
    same(run(rounds=reached + 1), resumed)


def test_the_report_on_disk(tmp_path):
    result = run(out=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["stop"] == Stop.ROUNDS.value
    assert report["history"] == result.history
    assert report["report"]["chi2"] == result.report.chi2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "report.json"]


def test_a_callback_sees_each_round_and_can_stop():
    rounds = []

    def callback(state):
        rounds.append((state.round, state.record["round"], len(state.history)))
        assert state.ot.potential.abs().max() > 0
        return state.round == 2

    result = run(callback=callback)
    assert rounds == [(0, 0, 1), (1, 1, 2), (2, 2, 3)]
    assert result.stop is Stop.CALLBACK


def test_time_stops_before_the_next_round():
    result = run(seconds=1e-9)
    assert result.stop is Stop.SECONDS
    assert len(result.history) == 1


def test_progress_carries_the_round_and_w():
    events = []
    run(rounds=1, progress=events.append)
    assert {(e.phase, e.round) for e in events} == {("solve", 0), ("fit", 1), ("solve", 1)}
    assert all({"w", "chi2", "loss"} == set(e.values) for e in events if e.phase == "fit")


def test_theory_stops_when_the_distance_is_reached():
    result = run(precision=Precision(alpha=0.3, ot1=1.0, fit=1e3, tries=1))
    assert result.stop is Stop.REACHED
    assert len(result.history) == 1


def test_theory_stops_when_ots_cannot_be_precise_enough():
    result = run(precision=Precision(alpha=0.001, ot1=0.0, tries=1))
    assert result.stop is Stop.TRANSPORT


def test_theory_stops_when_fit_cannot_follow():
    result = run(steps=1, precision=Precision(alpha=0.4, ot1=5.0, tries=2), max_samples=None, tol=0.01)
    assert result.stop is Stop.PROGRESS
    assert len(result.history) == 2


def test_theory_lets_progress_go_on():
    result = run(rounds=1, max_samples=None, tol=0.02, steps=200, precision=Precision(alpha=0.05, ot1=0.1))
    assert result.stop is Stop.ROUNDS
    w = [row["w"] for row in result.history]
    assert w[1] <= 0.95 * w[0]


def test_the_bound_of_the_marginals_cost_is_above_the_linear_program():
    ot = SemiDiscreteOT(torch.tensor([[0.0], [1.0], [3.0]]), cost="l1")
    mass = torch.tensor([0.5, 1 / 3, 1 / 6])  # 1/6 moves from 0 to 3
    assert theory.marginal_cost(ot, mass) == pytest.approx(0.5, rel=1e-5)
    assert theory.marginal_cost(ot, ot.weights) == 0
    mass = torch.tensor([0.6, 0.4, 0.0])  # the program moves 1/15 by 2 and 4/15 by 3
    assert theory.marginal_cost(ot, mass) == pytest.approx(1 / 15 * 2 + 4 / 15 * 3, rel=2e-3)


@pytest.mark.parametrize(
    ("cost", "p", "beta"), [("l1", None, 1), ("sqeuclidean", None, 0.5), ("lp", 3.0, 1 / 3), ("lp", 0.5, 1)]
)
def test_the_power_that_makes_a_metric(cost, p, beta):
    ot = SemiDiscreteOT(torch.zeros(1, 1), cost=cost, p=p)
    assert theory.exponent(ot.cost) == beta
    x = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    a, b, c = (ot.cost(u, v) ** beta for u, v in ((x[0], x[1]), (x[1], x[2]), (x[0], x[2])))
    assert (c <= a + b + 1e-5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": Precision(), "cost": "cosine"}, "precision: expected a cost some power of which is a metric"),
        ({"rounds": -1}, "rounds: expected an integer above -1"),
    ],
)
def test_unusable_arguments_are_named(options, message):
    with pytest.raises(InvalidArgument, match=message):
        run(**options)


@pytest.mark.parametrize(
    "options",
    [{"alpha": 0.5}, {"alpha": 0.0}, {"ot1": -1.0}, {"ot1": np.nan}, {"fit": -1.0}, {"ot2": 0.0}, {"tries": 0}],
)
def test_unusable_precisions_are_named(options):
    with pytest.raises(InvalidArgument, match=f"{next(iter(options))}: expected"):
        Precision(**options)


def test_a_generator_of_another_shape_is_named_before_anything_is_computed():
    with pytest.raises(SourceError, match=r"source: expected shape \(2, 64\), received shape \(2, 8, 8\)"):
        train(mlp(8, (8, 8)), digits(), 8, **SMALL)


def test_a_folder_that_holds_another_run_is_refused(tmp_path):
    run(out=tmp_path, rounds=0)
    with pytest.raises(RunError, match=r"out: expected an empty folder, received .*, which holds a run; resume it"):
        run(out=tmp_path)
    with pytest.raises(
        RunError, match=r"out: expected a run with .*'cost': 'euclidean'.*, received one with .*'cost': 'l1'"
    ):
        run(out=tmp_path, resume=True, cost="euclidean")
    (tmp_path / "checkpoint.safetensors").write_bytes(b"cut off")
    with pytest.raises(RunError, match="path: expected a whole file that fastsdot saved"):
        run(out=tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="out: expected a folder that can be written"):
        run(out=tmp_path / "file" / "run")


def test_a_failure_leaves_the_last_whole_round(tmp_path):
    def latent(n):
        z = torch.randn(n, 8)
        return z * float("nan") if (tmp_path / "checkpoint.safetensors").exists() else z

    torch.manual_seed(0)
    with pytest.raises(SourceError, match="source: expected finite values"):
        train(mlp(8, (64,), (64, 64)), digits(), latent, out=tmp_path, **SMALL)
    state = checkpoint.read(tmp_path / "checkpoint.safetensors")
    assert len(state["history"]) == 1


def test_checkpoints_keep_nested_state(tmp_path):
    state = {
        "tensors": [torch.arange(3), torch.tensor(2.5)],
        "by number": {0: {"step": torch.ones(2, dtype=torch.bfloat16)}, 1: None},
        "empty": {},
        "text": "tensor",
        "dict": {"tensor": "not a tensor"},
    }
    checkpoint.write(tmp_path / "c.safetensors", state)
    back = checkpoint.read(tmp_path / "c.safetensors")
    assert torch.equal(back["tensors"][0], torch.arange(3))
    assert back["tensors"][1].shape == ()
    assert back["by number"][0]["step"].dtype == torch.bfloat16
    assert back["by number"][1] is None
    assert back["empty"] == {}
    assert back["text"] == "tensor"
    assert back["dict"] == {"tensor": "not a tensor"}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("option", [{"perturbation": -1.0}, {"replay": 0}, {"seconds": float("nan")}])
def test_numbers_that_fit_cannot_use_are_refused_before_the_first_solve(option):
    with pytest.raises(InvalidArgument, match=f"{next(iter(option))}: expected"):
        run(max_samples=10**9, **option)


def test_a_round_counts_the_samples_of_all_its_solves():
    result = run(precision=Precision(alpha=0.001, ot1=0.0, tries=2))
    assert result.history[0]["samples"] > SMALL["max_samples"]


def test_rates_of_numpy_are_saved(tmp_path):
    generator = mlp(8, (64,), (64,))
    options = {"optimizer": torch.optim.Adam(generator.parameters(), lr=np.float32(1e-3)), "rounds": 0}
    train(generator, digits(), 8, out=tmp_path, max_samples=500, **options)
    assert checkpoint.read(tmp_path / "checkpoint.safetensors")["optimizer"]["param_groups"][0]["lr"] < 2e-3
