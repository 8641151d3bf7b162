import inspect
import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from ilis_guard.errors import SignatureError
from ilis_guard.signature import signature_map

pytestmark = pytest.mark.usefixtures("real_model")

# The tests' import hook checks shapes and dtypes before the function's own checks have their say.
unhooked = inspect.unwrap(signature_map)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, size: float = 3.0) -> Tensor:
    return (size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def by_loops(activations: Tensor, temperature: float = 1.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The definition, term by term, with exactly rounded sums."""
    rows = [[value / temperature for value in row] for row in activations.double().tolist()]
    logs = []
    for row in rows:
        normaliser = max(row) + math.log(math.fsum(math.exp(value - max(row)) for value in row))
        logs.append([value - normaliser for value in row])
    return np.array(
        [[math.fsum(math.exp(p) * (p - q) for p, q in zip(one, other, strict=True)) for other in logs] for one in logs]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("layers", "hidden"), [(1, 1), (1, 7), (2, 2), (3, 64), (7, 33), (16, 100), (40, 8)])
def test_the_map_equals_the_definition(layers: int, hidden: int, dtype: torch.dtype) -> None:
    activations = normal(layers, hidden, seed=layers + hidden, dtype=dtype)
    np.testing.assert_allclose(signature_map(activations).numpy(), by_loops(activations), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("difference", "least", "most"), [(1e-3, 1e-8, 1e-5), (1e-4, 1e-10, 1e-7)])
def test_nearly_identical_layers_keep_their_digits(
    difference: float, least: float, most: float, dtype: torch.dtype
) -> None:
    activations = normal(1, 576, dtype=dtype) + difference * normal(5, 576, seed=1, size=1.0, dtype=dtype)
    expected = by_loops(activations)
    apart = expected[~np.eye(5, dtype=bool)]
    assert least < apart.min() < apart.max() < most
    np.testing.assert_allclose(signature_map(activations).numpy(), expected, rtol=1e-4, atol=1e-15)


def test_row_i_column_j_is_the_divergence_of_i_from_j() -> None:
    sharp, flat = [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]
    p = math.exp(5) / (math.exp(5) + 3)
    sharp_from_flat = p * math.log(4 * p) + (1 - p) * math.log(4 * (1 - p) / 3)
    flat_from_sharp = 0.25 * math.log(0.25 / p) + 0.75 * math.log(0.75 / (1 - p))
    found = signature_map(torch.tensor([sharp, flat]))
    assert found[0, 1].item() == pytest.approx(sharp_from_flat, rel=1e-6)
    assert found[1, 0].item() == pytest.approx(flat_from_sharp, rel=1e-6)
    assert abs(sharp_from_flat - flat_from_sharp) > 0.1


def test_batch_dimensions_are_kept_and_rows_dont_mix() -> None:
    activations = normal(2, 3, 4, 20)
    found = signature_map(activations)
    assert found.shape == (2, 3, 4, 4)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(found[i, j].numpy(), by_loops(activations[i, j]), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float32_comes_out_whatever_goes_in(dtype: torch.dtype) -> None:
    assert signature_map(normal(2, 3, 8, dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_huge_activations_give_huge_finite_divergences(size: float) -> None:
    activations = normal(6, 64, size=1.0)
    activations[2, 5] = size
    activations[4, 9] = -size
    activations[5, 1] = size
    found = signature_map(activations)
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found.numpy(), by_loops(activations), rtol=1e-4, atol=1e-12)
    assert found[2, 5].item() == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0, 100.0])
def test_a_temperature_divides_the_activations(temperature: float) -> None:
    activations = normal(5, 40)
    found = signature_map(activations, temperature)
    np.testing.assert_allclose(found.numpy(), by_loops(activations, temperature), rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(found, signature_map(activations.double() / temperature), rtol=1e-6, atol=1e-12)


def test_input_is_not_modified() -> None:
    activations = normal(3, 4, 8, dtype=torch.float64)
    before = activations.clone()
    signature_map(activations)
    assert torch.equal(activations, before)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(2, 30), st.floats(1e-3, 1e3))
def test_maps_are_never_negative_and_zero_exactly_on_the_diagonal(
    seed: int, layers: int, hidden: int, size: float
) -> None:
    activations = normal(layers, hidden, seed=seed, size=size)
    activations[-1] = activations[0]
    found = signature_map(activations)
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
    assert (found.diagonal() == 0).all()
    assert found[0, -1].item() == pytest.approx(0, abs=1e-9 * max(1, size))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.permutations(range(6)))
def test_permuting_the_layers_permutes_the_map(seed: int, order: list[int]) -> None:
    activations = normal(6, 24, seed=seed)
    expected = signature_map(activations)[order][:, order]
    torch.testing.assert_close(signature_map(activations[order]), expected, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.floats(-500, 500), min_size=4, max_size=4))
def test_adding_a_constant_to_a_layer_changes_nothing(seed: int, constants: list[float]) -> None:
    activations = normal(4, 24, seed=seed, dtype=torch.float64)
    moved = activations + torch.tensor(constants, dtype=torch.float64)[:, None]
    torch.testing.assert_close(signature_map(moved), signature_map(activations), rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.randoms())
def test_the_order_of_the_hidden_dimensions_doesnt_matter(seed: int, chance: Random) -> None:
    activations = normal(4, 24, seed=seed)
    order = list(range(24))
    chance.shuffle(order)
    torch.testing.assert_close(signature_map(activations[:, order]), signature_map(activations), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_non_finite_activation_names_its_layer(bad: float, dtype: torch.dtype) -> None:
    activations = normal(2, 5, 8, dtype=dtype)
    activations[1, 3, 2] = bad
    with pytest.raises(SignatureError, match=rf"layer 3 \(of 5, counted from 0\) isn't finite \(dtype {dtype}\)"):
        signature_map(activations)


def test_all_layers_with_non_finite_activations_are_named() -> None:
    activations = normal(2, 5, 8)
    activations[0, 1, 0] = math.nan
    activations[1, 4, 7] = math.inf
    with pytest.raises(SignatureError, match=r"layer 1, 4 \(of 5"):
        signature_map(activations)


def test_map_beyond_float32_is_an_error_even_for_finite_activations() -> None:
    activations = torch.tensor([[1e300, 0.0], [0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(SignatureError, match="larger temperature"):
        signature_map(activations)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_isnt_a_positive_number_is_refused(temperature: float) -> None:
    with pytest.raises(SignatureError, match=rf"temperature must be a positive number, got {temperature!r}"):
        signature_map(normal(3, 8), temperature)


@pytest.mark.parametrize(
    ("activations", "got"),
    [
        (torch.ones(3, 4, dtype=torch.int64), r"torch.int64 \[3, 4\]"),
        (torch.ones(3, 4, dtype=torch.complex64), r"torch.complex64 \[3, 4\]"),
        (torch.ones(4), r"torch.float32 \[4\]"),
    ],
)
def test_input_other_than_a_floating_matrix_is_refused(activations: Tensor, got: str) -> None:
    with pytest.raises(SignatureError, match=f"must be a floating tensor .* got {got}"):
        unhooked(activations)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.125, 0.5, 2.0, 64.0]), st.sampled_from([0.1, 1.0, 3.0]))
def test_scale_and_temperature_trade_exactly_in_powers_of_two(seed: int, scale: float, temperature: float) -> None:
    activations = normal(4, 24, seed=seed)
    found = signature_map(activations * scale, temperature * scale)
    assert torch.equal(found, signature_map(activations, temperature))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.01, 100.0), st.floats(0.1, 10.0))
def test_scale_and_temperature_trade(seed: int, scale: float, temperature: float) -> None:
    activations = normal(4, 24, seed=seed, dtype=torch.float64)
    found = signature_map(activations * scale, temperature * scale)
    torch.testing.assert_close(found, signature_map(activations, temperature), rtol=1e-5, atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.floats(-1e4, 1e4), min_size=6, max_size=6), min_size=2, max_size=5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_activations_up_to_ten_thousand_give_numbers(rows: list[list[float]], dtype: torch.dtype) -> None:
    found = signature_map(torch.tensor(rows).to(dtype))
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
    assert (found.diagonal() == 0).all()
