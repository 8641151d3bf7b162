"""The KL kernel: post-MLP activations of all layers -> one map of directed divergences."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ilis_guard.errors import SignatureError


def signature_map(
    activations: Float[Tensor, "*batch layers hidden"], temperature: float = 1.0
) -> Float[Tensor, "*batch layers layers"]:
    """Directed KL divergences between all pairs of layers at one token position.

    Each layer's activation vector is read as a distribution over the hidden dimension, ``p_l = softmax(h_l / t)``,
    and ``S[i, j] = KL(p_i || p_j) = sum_d p_i[d] (log p_i[d] - log p_j[d])`` (arXiv:2603.22299). With ``z_l`` the
    scaled activations less their largest and ``Z_l = sum(exp z_l)``, ``log p_l = z_l - ln Z_l``, and one matrix product
    does all pairs: ``S[i, j] = exp(z_i) . (z_i - z_j) / Z_i - ln Z_i + ln Z_j``.

    The subtraction cancels almost everything where two layers agree, so it is done in float64: in float32 a
    divergence of 1e-6 nats would have no correct digit.

    Args:
        activations: ``[..., layers, hidden]``, any floating dtype, any device.
        temperature: softmax temperature, above 0.

    Returns:
        ``[..., layers, layers]``, float32, nats: row i, column j is KL(p_i || p_j); never negative, diagonal 0.

    Raises:
        SignatureError: an activation isn't finite (the message names the layers), the tensor isn't floating, or
            the temperature isn't a positive number.
    """
    if not activations.is_floating_point() or activations.ndim < 2:
        raise SignatureError(
            f"activations must be a floating tensor [..., layers, hidden], got {activations.dtype} "
            f"{list(activations.shape)!r}"
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise SignatureError(f"the temperature must be a positive number, got {temperature!r}")
    below = activations.to(torch.float64, copy=True)
    if temperature != 1.0:
        below /= temperature
    below -= below.amax(dim=-1, keepdim=True)
    weights = below.exp()
    total = weights.sum(dim=-1, keepdim=True)
    cross = (weights @ below.mT).div_(total)
    own, log_total = cross.diagonal(dim1=-2, dim2=-1)[..., None], total.log()
    divergences = (own - cross - log_total + log_total.mT).clamp_(min=0).to(torch.float32)
    if not torch.isfinite(divergences).all():
        raise SignatureError(_not_finite(activations))
    divergences.diagonal(dim1=-2, dim2=-1).zero_()
    return divergences


def _not_finite(activations: Float[Tensor, "*batch layers hidden"]) -> str:
    finite = torch.isfinite(activations).all(dim=-1).reshape(-1, activations.shape[-2]).all(dim=0)
    layers = [layer for layer, good in enumerate(finite.tolist()) if not good]
    if not layers:
        return (
            f"the map isn't finite though all activations are (dtype {activations.dtype}): divide them by a larger "
            "temperature"
        )
    return (
        f"the activation of layer {', '.join(map(str, layers))} (of {activations.shape[-2]}, counted from 0) isn't "
        f"finite (dtype {activations.dtype}): the model overflowed; load it in another precision"
    )
