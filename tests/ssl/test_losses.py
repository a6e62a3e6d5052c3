"""Every loss against a few independent lines of float64 numpy."""

import numpy as np
import pytest
import torch

from hpcqa.parallel.ranks import Ranks
from hpcqa.parallel.torchdist import World
from hpcqa.ssl import losses

WORLD = World(Ranks(), torch.device("cpu"))
RNG = np.random.default_rng(5)


def tensor(values):
    return torch.from_numpy(np.asarray(values, np.float64)).float()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_sinkhorn_against_the_papers_algorithm():
    scores = RNG.uniform(-1, 1, (10, 6))
    q = np.exp(scores / 0.05).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * 6
        q /= q.sum(0, keepdims=True) * 10
    (found,) = losses.sinkhorn([tensor(scores)], 0.05, WORLD)
    assert np.allclose(found.numpy(), (q * 10).T, atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(10))


def test_sinkhorn_of_nothing_and_of_huge_scores():
    nothing, huge = losses.sinkhorn([torch.zeros(0, 4), 1e4 * torch.randn(5, 4)], 0.04, WORLD)
    assert nothing.shape == (0, 4)
    assert torch.isfinite(huge).all()


def test_sinkhorn_balances_each_group_by_itself_and_leaves_the_scores_alone():
    groups = [tensor(RNG.uniform(-1, 1, (num, 6))) for num in (10, 4)]
    before = [scores.clone() for scores in groups]
    both = losses.sinkhorn(groups, 0.05, WORLD)
    assert all(torch.equal(scores, kept) for scores, kept in zip(groups, before, strict=True))
    for scores, found in zip(groups, both, strict=True):
        assert torch.equal(found, losses.sinkhorn([scores], 0.05, WORLD)[0])


def test_softmax_centring():
    scores, centre = RNG.normal(size=(5, 4)), RNG.normal(size=4)
    expected = softmax((scores - centre) / 0.07)
    assert np.allclose(losses.centred(tensor(scores), tensor(centre), 0.07).numpy(), expected, atol=1e-5)
    moved = losses.moved_centre(tensor(centre), tensor(scores), WORLD)
    assert np.allclose(moved.numpy(), 0.9 * centre + 0.1 * scores.mean(0), atol=1e-6)


def test_dino():
    student, teacher = RNG.normal(size=(4, 3, 5)), softmax(RNG.normal(size=(2, 3, 5)))
    terms = [
        -(teacher[t] * np.log(softmax(student[s] / 0.1))).sum(-1).mean() for t in range(2) for s in range(4) if s != t
    ]
    found = losses.dino([tensor(x) for x in student], [tensor(x) for x in teacher], 0.1, 1 / 3)
    assert float(found) == pytest.approx(np.mean(terms), rel=1e-5)


def test_ibot_weighs_images_and_not_patches():
    student, teacher = RNG.normal(size=(4, 5)), softmax(RNG.normal(size=(4, 5)))
    each = -(teacher * np.log(softmax(student / 0.1))).sum(-1)
    expected = (each[:3].mean() + each[3]) / 3
    image = torch.tensor([0, 0, 0, 2])
    found = losses.ibot(tensor(student), tensor(teacher), image, 3, 0.1, 1 / 3)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_ibot_without_masked_patches_is_zero_with_a_gradient():
    student = torch.zeros(0, 5, requires_grad=True)
    loss = losses.ibot(student, torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 3, 0.1, 1.0)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


def test_koleo():
    features = RNG.normal(size=(6, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance = np.linalg.norm(unit[:, None] - unit[None], axis=-1) + 9 * np.eye(6)
    expected = -np.log(distance.min(1)).mean()
    found = losses.koleo(tensor(features), tensor(features), 0, 1 / 6)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_koleo_of_equal_features_is_finite_and_of_one_is_an_error():
    same = torch.ones(3, 4, requires_grad=True)
    loss = losses.koleo(same, same.detach(), 0, 1 / 3)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(same.grad).all()
    with pytest.raises(ValueError, match="at least two"):
        losses.koleo(torch.ones(1, 4), torch.ones(1, 4), 0, 1.0)


def test_defects():
    whole, patch = RNG.normal(size=(3, 2)), RNG.normal(size=(3, 4, 2))
    kinds, patches = RNG.integers(0, 2, (3, 2)), RNG.integers(0, 2, (3, 4, 2))

    def bce(logit, truth):
        p = 1 / (1 + np.exp(-logit))
        return -(truth * np.log(p) + (1 - truth) * np.log(1 - p))

    expected = (bce(whole, kinds).sum(1) + bce(patch, patches).sum(2).mean(1)).mean()
    found = losses.defects(tensor(whole), tensor(patch), tensor(kinds), tensor(patches), 1 / 3)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_numbers_ignore_what_is_unknown():
    predicted, measured = RNG.normal(size=(3, 4)), 3 * RNG.normal(size=(3, 4))
    measured[0, 1:] = np.nan
    measured[2] = np.nan
    error = np.abs(predicted - measured)
    huber = np.where(error < 1, 0.5 * error**2, error - 0.5)
    expected = (huber[0, 0] + huber[1].mean()) / 3
    guess = tensor(predicted).requires_grad_()
    loss = losses.numbers(guess, tensor(measured), 1 / 3)
    loss.backward()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(guess.grad).all()
    assert (guess.grad[2] == 0).all()
