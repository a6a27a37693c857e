"""One potential per class: every class is its own problem, labels follow targets, rows without a label go by all."""

import copy

import numpy as np
import pytest
import torch

from fastsdot import ConditionalOT, InvalidArgument, NotConverged, Reason, SemiDiscreteOT
from fastsdot.replay import Replay
from fastsdot.storage import Storage

N, SHAPE = 80, (4, 3)


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(n):
    return torch.randn(n, *SHAPE)


def make(unconditional=True, seed=0, labels=None, **options):
    y = options.pop("targets", None)
    y = normal(N, *SHAPE, seed=seed) if y is None else y
    labels = torch.arange(N) * 7 % 5 if labels is None else labels  # classes 0 to 4, mixed
    ot = ConditionalOT(y, labels, unconditional=unconditional, **options)
    for k, part in enumerate(ot.parts):
        part.potential.copy_(normal(part.potential.numel(), seed=k))
    return ot, y, labels


X, ASKED = normal(200, *SHAPE, seed=9), torch.randint(-1, 5, (200,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cost", ["sqeuclidean", "l1"])
def test_rows_go_to_targets_of_their_class_and_of_the_smallest_score(cost):
    ot, y, labels = make(cost=cost)
    index = ot.assign(X, ASKED)
    known = ASKED >= 0
    assert torch.equal(labels[index[known]], ASKED[known])
    assert labels[index[~known]].unique().numel() > 1
    assert torch.equal(ot.transport(X, ASKED), y[index])
    assert torch.equal(ot(X, ASKED), y[index])
    for label in (*ot.classes, None):
        rows = torch.eq(ASKED, -1 if label is None else label)
        members = ot.members(label)
        score = ot[label].cost(X[rows].flatten(1)[:, None], y[members].flatten(1)[None]) - ot[label].potential
        assert torch.equal(members[score.argmin(1)], index[rows])
        torch.testing.assert_close(score.amin(1), ot.c_transform(X, ASKED)[rows], rtol=1e-4, atol=1e-4)


def test_one_class_is_the_plain_transport():
    y = normal(N, 12, seed=0)
    ot, plain, x = ConditionalOT(y, ["cat"] * N), SemiDiscreteOT(y), X.flatten(1)
    assert ot["cat"].targets.data_ptr() == y.data_ptr()  # sorted already: no copy
    a, b = (each.solve(12, tol=0.3, generator=torch.Generator().manual_seed(2)) for each in (ot, plain))
    assert torch.equal(ot["cat"].potential, plain.potential)
    assert torch.equal(ot.assign(x, "cat"), plain.assign(x))
    assert (a.samples, a.report.chi2) == (b.samples, pytest.approx(b.report.chi2))


def test_a_class_weighs_its_targets_as_the_data_set_does():
    b = torch.linspace(0, 2, N)
    ot, _, _ = make(weights=b)
    for label in (*ot.classes, None):
        own = b[ot.members(label)]
        torch.testing.assert_close(ot[label].weights, own / own.sum())
        if label is not None:
            assert ot.shares[label] == pytest.approx(float(own.sum() / b.sum()))


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_renamed_classes_change_nothing(kind):
    ot, y, labels = make(unconditional=False)
    rename = torch.tensor([3, 0, 4, 1, 2])
    other = ConditionalOT(y, kind(rename[labels].tolist()))
    for k in range(5):
        other[int(rename[k])].potential.copy_(ot[k].potential)
    asked = ASKED.clamp(min=0)
    assert torch.equal(other.assign(X, rename[asked]), ot.assign(X, asked))


def test_strings_missing_labels_and_one_label_for_all():
    names = np.array(["ant", "bee", "cat", "dog", "eel"])
    ot, _, labels = make()
    named, _, _ = make(labels=names[labels.numpy()])
    asked = [names[k] if k >= 0 else None for k in ASKED]
    assert named.classes == names.tolist()
    assert torch.equal(named.assign(X, asked), ot.assign(X, ASKED))
    assert torch.equal(named.assign(X, "bee"), ot.assign(X, 1))
    assert torch.equal(named.assign(X, None), ot[None].assign(X).apply_(lambda j: int(ot.members(None)[j])))
    assert torch.equal(ot.assign(X, None), ot.assign(X, -1))
    assert ot.assign(X[:0], []).shape == (0,)
    assert ot.transport(X[:0], ASKED[:0]).shape == (0, *SHAPE)


def test_gradients_reach_samples_and_potentials():
    ot, _, _ = make()
    x = X.clone().requires_grad_()
    ot[2].potential.requires_grad_()
    value = ot.c_transform(x, ASKED)
    found, held = torch.autograd.grad(value.sum(), (x, ot[2].potential))
    torch.testing.assert_close(found, 2 * (X - ot.transport(X, ASKED)), rtol=1e-4, atol=1e-4)
    assert held.sum() == -(ASKED == 2).sum()


def test_entropic_draws_keep_to_the_class():
    ot, _, labels = make(epsilon=2.0)
    index = ot.sample(X, ASKED, torch.Generator().manual_seed(0))
    assert torch.equal(labels[index][ASKED >= 0], ASKED[ASKED >= 0])
    assert torch.equal(index, ot.sample(X, ASKED, torch.Generator().manual_seed(0)))
    mean = ot.barycenter(X, 3)
    torch.testing.assert_close(mean, ot[3].barycenter(X))


def test_all_classes_are_solved_from_the_same_samples():
    ot, _, _ = make(weights=torch.linspace(0.5, 2, N))
    for part in ot.parts:
        part.potential.zero_()
    drawn = 0

    def source(n):
        nonlocal drawn
        drawn += n
        return noise(n)

    torch.manual_seed(0)
    solution = ot.solve(source, tol=0.2)
    assert solution.converged
    assert solution.reason is Reason.CONVERGED
    assert solution.unconverged == ()
    assert {row["class"] for row in solution.history} == {*ot.classes, None}
    assert solution.samples == drawn
    assert drawn <= max(part.samples for part in solution.classes.values())
    report = ot.evaluate(noise, 20_000)
    assert all(part.chi2 < 0.25 for part in report.classes.values())
    masses = torch.cat([report.shares[label] * report[label].mass for label in ot.classes])
    weights = torch.cat([report.shares[label] * ot[label].weights for label in ot.classes])
    biased = float((masses**2 / weights).sum()) - 1
    assert report.chi2 == pytest.approx(biased, abs=0.01)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert solution.report.chi2_error >= report.chi2_error
    assert "pooled" in str(report)


def test_a_source_for_each_class():
    ot, _, _ = make()
    asked = {label: [] for label in (*ot.classes, None)}

    def make_source(label):
        return lambda n: asked[label].append(n) or noise(n)

    solution = ot.solve({label: make_source(label) for label in asked}, tol=0.5, max_samples=2_000)
    assert all(asked.values())
    assert solution.samples == sum(map(sum, asked.values()))


def test_what_did_not_converge_is_named():
    labels = torch.zeros(N, dtype=torch.int64)
    labels[0] = 1  # a class of one target is solved at once
    ot = ConditionalOT(normal(N, *SHAPE, seed=0), labels)
    solution = ot.solve(noise, tol=0.01, max_samples=1_500)
    assert not solution.converged
    assert solution.unconverged == (0,)
    assert solution.reason is Reason.MAX_SAMPLES
    assert solution[1].converged
    with pytest.raises(NotConverged) as caught:
        ot.solve(noise, tol=0.01, max_samples=1_500, throw=True)
    assert caught.value.solution.unconverged == (0,)


def test_a_callback_sees_the_class_and_stops():
    ot, _, _ = make()
    rows = []

    def callback(row):
        rows.append(row["class"])
        return row["class"] == 1

    solution = ot.solve(noise, tol=1.0, callback=callback)
    assert list(dict.fromkeys(rows)) == [0, 1]
    assert solution.reason is Reason.CALLBACK
    assert not solution.converged
    assert set(solution.unconverged) >= {2, 3, 4, None}


def test_save_and_load(tmp_path):
    ot, y, _ = make(cost="l1", weights=torch.linspace(0.5, 2, N), labels=[str(k % 3) for k in range(N)])
    ot.solve(noise, tol=1.0, max_samples=500)
    asked = [None, "0", "1", "2"] * 50
    ot.save(tmp_path / "ot")
    back = ConditionalOT.load(tmp_path / "ot", y)
    assert torch.equal(back.assign(X, asked), ot.assign(X, asked))
    for part, other in zip(ot.parts, back.parts, strict=True):
        assert torch.equal(part.weights, other.weights)
        assert torch.equal(part.ascent.potential, other.ascent.potential)
    with pytest.raises(InvalidArgument, match="targets: expected those the file was saved for"):
        ConditionalOT.load(tmp_path / "ot", y + 1)
    with pytest.raises(InvalidArgument, match="labels: expected integers"):
        ConditionalOT.load(tmp_path / "ot", y[:-1])
    with pytest.raises(InvalidArgument, match="path: expected a file of one SemiDiscreteOT"):
        SemiDiscreteOT.load(tmp_path / "ot", y)
    ot["0"].save(tmp_path / "part")
    with pytest.raises(InvalidArgument, match="path: expected a file written by ConditionalOT"):
        ConditionalOT.load(tmp_path / "part", y)


def test_targets_are_held_once_and_state_travels():
    ot, y, _ = make()
    start = ot[None].targets.untyped_storage().data_ptr()
    assert all(part.targets.untyped_storage().data_ptr() == start for part in ot.parts)
    for other in (copy.deepcopy(ot), copy.deepcopy(ot).half()):
        start = other[None].targets.untyped_storage().data_ptr()
        assert all(part.targets.untyped_storage().data_ptr() == start for part in other.parts)
        assert (other.assign(X, ASKED) == ot.assign(X, ASKED)).float().mean() > 0.98
    fresh = ConditionalOT(y, torch.arange(N) * 7 % 5, unconditional=True)
    fresh.load_state_dict(ot.state_dict())
    assert torch.equal(fresh.assign(X, ASKED), ot.assign(X, ASKED))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_mapped_targets_are_read_in_blocks(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 256, (N, *SHAPE)).astype(dtype)
    np.save(tmp_path / "y.npy", array)
    mapped, _, _ = make(targets=np.load(tmp_path / "y.npy", mmap_mode="r"), memory=600)
    here, _, _ = make(targets=array)
    assert all(isinstance(part.targets, Storage) for part in mapped.parts)
    everyone = mapped.members(None).argsort()  # in the file's order there, sorted by class here
    mapped[None].potential.copy_(here[None].potential[here.members(None).argsort()][everyone])
    x = X * (100 if dtype == np.float32 else 1)
    assert torch.equal(mapped.assign(x, ASKED), here.assign(x, ASKED))
    assert torch.equal(mapped.transport(x, ASKED), here.transport(x, ASKED))


def test_a_replay_gives_every_reader_the_same_samples_once(monkeypatch):
    count = 0

    def source(n):
        nonlocal count
        count += n
        return torch.arange(count - n, count).float()[:, None].expand(n, 2)

    monkeypatch.setattr("fastsdot.replay.LIMIT", 40 * 8)
    replay = Replay(source, torch.Size([2]), torch.device("cpu"))
    first, second = replay.reader(), replay.reader()
    assert torch.cat([first(7), first(9), first(3)])[:, 0].tolist() == list(range(19))
    assert second(25)[:, 1].tolist() == list(range(25))
    assert second(30)[:, 0].tolist() == list(range(25, 55))  # past the limit: not kept
    assert first(10)[:, 0].tolist() == [19, 20, 21, 22, 23, 24, 55, 56, 57, 58]
    assert replay.drawn == 59


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (torch.zeros(N - 1, dtype=torch.int64), {}, r"labels: expected integers ≥ 0 or strings, shape \[80\]"),
        (torch.zeros(N), {}, "labels: expected integers ≥ 0 or strings"),
        (torch.full((N,), -1), {}, "labels: expected integers ≥ 0, received -1; number the classes from 0"),
        (torch.arange(N) // 40, {"weights": torch.arange(N) // 40}, "weights: expected some weight in every class"),
        (torch.arange(N) // 40, {"weights": torch.ones(3)}, r"weights: expected shape \[80\]"),
    ],
)
def test_unusable_labels_of_targets_are_named(labels, options, message):
    with pytest.raises(InvalidArgument, match=message):
        ConditionalOT(normal(N, *SHAPE, seed=0), labels, **options)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (X, ASKED + 1, r"labels: expected one of the 5 classes \(0, 1, 2, 3, 4\), or −1 or None .* received 5"),
        (X, 7, "labels: expected one of the 5 classes"),
        (X, "cat", "labels: expected one of the 5 classes"),
        (X, ASKED, r"labels: expected one of the 5 classes .* for every row, received \d+ rows without"),
        (X, None, "labels: expected .* received 200 rows without; give unconditional=True"),
        (X, [0] * 199, "labels: expected 200 labels, one for each row, received 199 labels"),
        (X, torch.zeros(200), r"labels: expected 200 labels, one for each row, received torch.float32 \[200\]"),
        (X[:, 0], 0, r"x: expected shape \[B, 4, 3\]"),
    ],
)
def test_unusable_rows_are_named(x, labels, message):
    ot, _, _ = make(unconditional=False)
    with pytest.raises(InvalidArgument, match=message):
        ot.transport(x, labels)


def test_a_missing_class_of_sources_is_named():
    ot, _, _ = make()
    with pytest.raises(InvalidArgument, match="source: expected a source for every class, received none for 3"):
        ot.solve(dict.fromkeys([0, 1, 2, 4, None], noise))
    with pytest.raises(InvalidArgument, match=r"label: expected one of the 5 classes .* received 9"):
        ot[9]


def test_seconds_are_shared_by_the_classes():
    ot, _, _ = make()
    solution = ot.solve(noise, max_seconds=1e-6)
    assert solution.reason is Reason.MAX_SECONDS
    assert len(solution.classes) == len(list(ot.items()))
    with pytest.raises(InvalidArgument, match="max_seconds: expected"):
        ot.solve(noise, max_seconds=-1)
    one = np.int64(0)
    assert torch.equal(ot.assign(X, one), ot.assign(X, 0))
