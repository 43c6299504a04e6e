"""Shared by the decompositions of convolutions: read one, build its parts."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from compression_adapters.decompositions.base import Decomposition, has_plain_weight

Pair = tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution; everything but channels and weights.

    Args:
        stride: Rows and columns.
        padding: Rows and columns, or `"same"` or `"valid"`.
        dilation: Rows and columns.
        groups: Number of groups.
        padding_mode: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.

    Example:
        >>> Geometry.of(nn.Conv2d(4, 6, 3, stride=2, padding=1)).along_height()
        Geometry(stride=(2, 1), padding=(1, 0), dilation=(1, 1), groups=1, \
padding_mode='zeros')
    """

    stride: Pair = (1, 1)
    padding: str | Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_mode: PaddingMode = "zeros"

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "Geometry":
        """Read the geometry of a layer."""
        padding = layer.padding
        return cls(
            _pair(layer.stride),
            padding if isinstance(padding, str) else _pair(padding),
            _pair(layer.dilation),
            layer.groups,
            layer.padding_mode,
        )

    def along_height(self) -> "Geometry":
        """Return the part of it that a `k x 1` kernel uses."""
        return self._along(0)

    def along_width(self) -> "Geometry":
        """Return the part of it that a `1 x k` kernel uses."""
        return self._along(1)

    def depthwise(self, channels: int) -> "Geometry":
        """Return the same with one group per channel."""
        return replace(self, groups=channels)

    def _along(self, axis: int) -> "Geometry":
        def only(pair: Pair, neutral: int) -> Pair:
            return (pair[0], neutral) if axis == 0 else (neutral, pair[1])

        return replace(
            self,
            stride=only(self.stride, 1),
            # `same` and `valid` are correct for either kernel.
            padding=self.padding
            if isinstance(self.padding, str)
            else only(self.padding, 0),
            dilation=only(self.dilation, 1),
        )


class _Undrawn(nn.Conv2d):
    """A convolution that draws no weights, which would dominate a trial's overhead.

    It also leaves the global random state unchanged.
    """

    def reset_parameters(self) -> None:
        """Leave the weights uninitialised; they are replaced."""


def conv2d(
    weight: Tensor, bias: Tensor | None = None, geometry: Geometry | None = None
) -> nn.Conv2d:
    """Build a convolution around existing tensors, without copying them.

    Args:
        weight: Shape `out_channels x in_channels / groups x height x width`.
        bias: Shape `out_channels`, or None.
        geometry: Stride, padding and so on; None for a stride of one, no padding.

    Returns:
        The convolution, its parameters not trainable.

    Example:
        >>> conv2d(torch.ones(4, 2, 1, 1))
        Conv2d(2, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)
    """
    geometry = geometry or Geometry()
    out_channels, in_channels, height, width = weight.shape
    layer = _Undrawn(
        in_channels * geometry.groups,
        out_channels,
        (height, width),
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.groups,
        False,
        geometry.padding_mode,
        device=weight.device,
    )
    # Only the constructor differs; mypy takes no assignment to a class for one.
    layer.__class__ = nn.Conv2d  # type: ignore[assignment]
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return layer


def spatial_conv2d(layer: nn.Module) -> nn.Conv2d | None:
    """Return a plain convolution without groups that is larger than 1 x 1.

    A 1 x 1 convolution is a matrix, for which `svd` gives the same with fewer parts.
    """
    conv = plain_conv2d(layer)
    if conv is None or conv.groups > 1 or conv.kernel_size == (1, 1):
        return None
    return conv


def plain_conv2d(layer: nn.Module) -> nn.Conv2d | None:
    """Return the layer if it is exactly `nn.Conv2d` with a weight of its own."""
    if type(layer) is nn.Conv2d and has_plain_weight(layer):
        return layer
    return None


def largest_rank(
    weight_shape: tuple[int, ...], weights_per_rank: int, full_rank: int
) -> int:
    """Return the largest rank that adds no weights; 0 if rank 1 adds some.

    Args:
        weight_shape: Shape of the dense weight.
        weights_per_rank: Weights of one more rank, in all groups.
        full_rank: The rank that reproduces the weight.
    """
    return min(math.prod(weight_shape) // weights_per_rank, full_rank)


def supported_conv2d(decomposition: Decomposition, layer: nn.Module) -> nn.Conv2d:
    """Narrow to a convolution that a decomposition supports, or refuse it by name.

    Args:
        decomposition: Of any plain convolution that rank 1 makes no larger.
        layer: Any layer.

    Raises:
        ValueError: when it is not supported.
    """
    if not isinstance(layer, nn.Conv2d) or not decomposition.supports(layer):
        raise ValueError(
            f"{type(decomposition).__name__} supports exactly nn.Conv2d with a plain "
            f"weight that rank 1 makes no larger; got {layer!r}. Choose another "
            "decomposition or leave this layer out."
        )
    return layer


def bias_of(layer: nn.Conv2d | nn.Linear) -> Tensor | None:
    """Return a copy of the bias, or None."""
    return None if layer.bias is None else layer.bias.detach().clone()


def empty_bias(layer: nn.Conv2d | nn.Linear) -> Tensor | None:
    """Return an uninitialised tensor in place of the bias, or None."""
    return None if layer.bias is None else torch.empty_like(layer.bias.detach())


def shape_in_words(weight_shape: tuple[int, ...], groups: int = 1) -> str:
    """Describe a convolution in an error message."""
    grouped = f" and {groups} groups" if groups > 1 else ""
    sizes = " x ".join(map(str, weight_shape))
    return f"a convolution with a weight of shape {sizes}{grouped}"


def _pair(sizes: tuple[int, ...]) -> Pair:
    """Narrow to two numbers."""
    rows, columns = sizes
    return rows, columns
