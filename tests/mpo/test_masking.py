import pytest
import torch

from mpo.masking import masked_mean, masked_whiten


def test_mean_counts_selected_entries_alone() -> None:
    x = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == pytest.approx(3.0, abs=1e-7)


def test_mean_of_nothing_is_zero() -> None:
    assert masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_gradients_outside_the_mask_are_exactly_zero_even_where_entries_are_not_finite() -> None:
    x = torch.tensor([1.0, float("inf"), float("nan"), 3.0], requires_grad=True)
    masked_mean(x, torch.tensor([True, False, False, True])).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.5, 0.0, 0.0, 0.5]


def test_whitened_entries_have_mean_zero_and_variance_one() -> None:
    x = torch.tensor([1.0, 5.0, 1e9, 3.0])
    whitened = masked_whiten(x, torch.tensor([True, True, False, True]))
    # Mean 3, population variance 8/3.
    expected = torch.tensor([-2.0, 2.0, 0.0, 0.0]) / (8 / 3) ** 0.5
    torch.testing.assert_close(whitened, expected, atol=1e-6, rtol=0)


def test_a_single_entry_whitens_to_zero() -> None:
    assert masked_whiten(torch.tensor([7.0, 1.0]), torch.tensor([True, False])).tolist() == [0.0, 0.0]
