import numpy as np
import torch
from scipy import stats

from hpcqa.ssl import draws


def keys(count: int = 64, step: int = 0, purpose: str = "p") -> torch.Tensor:
    return draws.image_keys(1, purpose, step, np.arange(count) // 4, np.arange(count) % 4)


def test_keys_depend_on_seed_purpose_step_and_image_only():
    assert torch.equal(keys(), keys())
    every = torch.cat([keys(), keys(step=1), keys(purpose="q")])
    assert len(torch.unique(every)) == len(every)
    assert torch.equal(keys()[5:9], draws.image_keys(1, "p", 0, np.array([1, 1, 1, 2]), np.array([1, 2, 3, 0])))


def test_scramble_is_splitmix64():
    # First three outputs of splitmix64 from state 0 (Vigna's reference code).
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    state = torch.zeros(1, dtype=torch.int64)
    for value in expected:
        assert int(draws.scramble(state)[0]) % 2**64 == value
        state = state + draws.GOLDEN


def test_every_device_has_the_same_bits():
    every = torch.cat([keys(), -keys(), torch.tensor([0, -1, 2**63 - 1, -(2**63)])])
    assert torch.equal(draws.scramble(every), draws._scrambled(every))


def test_groups_are_the_places_of_each_choice():
    chosen = torch.tensor([2, -1, 0, 2, -7, 2])
    found = {number: where.tolist() for number, where in draws.groups(chosen, 4)}
    assert found == {0: [2], 2: [0, 3, 5]}
    assert list(draws.groups(chosen[:0], 4)) == []


def test_uniform_is_uniform_and_uncorrelated():
    u = draws.uniform(keys(2000), 5)
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(u.T.numpy()) - np.eye(5)).max() < 0.08


def test_normal_is_normal_and_differs_between_images():
    n = draws.normal(keys(8), (20, 30))
    assert n.shape == (8, 20, 30)
    assert stats.kstest(n.flatten().numpy(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(n.flatten(1).numpy()) - np.eye(8)).max() < 0.2


def test_derived_keys_are_new_for_each_purpose():
    both = torch.cat([keys(), draws.derived(keys(), 1), draws.derived(keys(), 2)])
    assert len(torch.unique(both)) == len(both)


def test_ranges():
    u = torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(draws.between(u, 2, 4), torch.tensor([2.0, 3.0, 4.0]))
    assert torch.allclose(draws.log_between(u, 1, 100), torch.tensor([1.0, 10.0, 100.0]))
