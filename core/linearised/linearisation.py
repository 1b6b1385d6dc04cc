"""A network's last layers as a linear function of their parameters: f(x; w) = f_{w_c}(x) + J(x)w.

J(x), of shape (C, D), is never formed for more than a few samples: forward mode gives J·v, reverse
mode Jᵀ·u, for many directions at once (`torch.func`). Where all linearised layers are dense, their
kernel J(x)J(x')ᵀ follows from what enters each layer and how the outputs depend on what leaves it,
without any number of D floats.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from core.linearised.architectures import feature_shape, layers_of
from core.linearised.networks import DenseLayer, Network
from core.problem import require_matrix

# What one batch of samples may hold between two layers, for all directions together: 64 MiB.
_BATCH_FLOATS = 2**23
# Values, tangents, masks and what a layer is made of inside.
_COPIES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Linearisation:
    """The first-order expansion of a network around public weights, in the parameters w ∈ R^D.

    Parameters are flattened in the order of `core.linearised.architectures.trainable`. Samples come
    as what the frozen part makes of them ("features").

    Attributes:
        network: The network; its own parameters of the last layers are the centre w_c.
    """

    network: Network

    @property
    def num_parameters(self) -> int:
        """Return D."""
        return sum(value.numel() for value in self.network.parameters.values())

    @property
    def num_outputs(self) -> int:
        """Return C."""
        return self.network.spec.num_outputs

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample's features."""
        return feature_shape(self.network.spec)

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return next(iter(self.network.parameters.values())).device

    def centre_outputs(self, features: Tensor) -> Tensor:
        """Return f_{w_c}(x), shape (n, C), float64.

        Args:
            features: Shape (n, ...), float64.

        Returns:
            The network's own outputs.
        """
        with torch.no_grad():
            parts = [self._outputs(batch) for batch in self._batches(features, 1)]
        return torch.cat(parts)

    def jvp(self, features: Tensor, directions: Tensor) -> Tensor:
        """Return J(x)v for every sample and direction, by forward-mode differentiation.

        Args:
            features: Shape (n, ...), float64.
            directions: Rows v, shape (k, D), float64.

        Returns:
            Shape (k, n, C), float64.

        Raises:
            InvalidTensorError: The directions have another length than D.
        """
        require_matrix("directions", directions, columns=self.num_parameters)
        tangents = self._unflatten(directions)
        parts = [self._push(batch, tangents) for batch in self._batches(features, len(directions))]
        return torch.cat(parts, dim=1)

    def vjp(self, features: Tensor, cotangents: Tensor, total: Tensor | None = None) -> Tensor:
        """Return Σ_i J(x_i)ᵀu_i for every direction, by reverse-mode differentiation.

        Args:
            features: Shape (n, ...), float64.
            cotangents: u, shape (k, n, C), float64.
            total: What the sums are added to, in place, shape (k, D), float64; zeros if None.

        Returns:
            Shape (k, D), float64, summed over the samples.
        """
        if total is None:
            total = features.new_zeros(len(cotangents), self.num_parameters)
        begin = 0
        for batch in self._batches(features, len(cotangents)):
            end = begin + len(batch)
            self._pull(batch, cotangents[:, begin:end], total)
            begin = end
        return total

    def gauss_newton(self, features: Tensor, directions: Tensor) -> Tensor:
        """Return Σ_i J(x_i)ᵀJ(x_i)v for every direction: the data part of the Hessian.

        Args:
            features: Shape (n, ...), float64.
            directions: Rows v, shape (k, D), float64.

        Returns:
            Shape (k, D), float64, summed over the samples.

        Raises:
            InvalidTensorError: The directions have another length than D.
        """
        require_matrix("directions", directions, columns=self.num_parameters)
        tangents = self._unflatten(directions)
        total = torch.zeros_like(directions)
        for batch in self._batches(features, len(directions)):
            self._pull(batch, self._push(batch, tangents), total)
        return total

    def rows(self, features: Tensor) -> Tensor:
        """Return the rows of J(x), those of one sample together.

        Args:
            features: Shape (n, ...), float64; n·C·D numbers have to fit.

        Returns:
            Shape (n·C, D), float64.
        """
        outputs, width = self.num_outputs, self.num_parameters
        rows = features.new_zeros(len(features), outputs, width)
        layers = self.network.dense
        if layers is not None:
            return self._fill(rows, features, layers).reshape(-1, width)
        unit = torch.eye(outputs, dtype=features.dtype, device=features.device)[:, None]
        for index, sample in enumerate(torch.split(features, 1)):
            self._pull(sample, unit, rows[index])
        return rows.reshape(-1, width)

    def kernel(self, features: Tensor, others: Tensor) -> Tensor:
        """Return J(x)J(x')ᵀ for all pairs of samples: the dual of the Gauss–Newton matrix.

        Args:
            features: x, shape (n, ...), float64.
            others: x', shape (m, ...), float64.

        Returns:
            Shape (n·C, m·C), float64.
        """
        layers = self.network.dense
        if layers is None:
            return self._kernel_by_rows(features, others)
        left, right = self._traces(features, layers), self._traces(others, layers)
        outputs = self.num_outputs
        kernel = features.new_zeros(len(features), outputs, len(others), outputs)
        for ours, theirs in zip(left, right, strict=True):
            # ⟨B_c ⊗ [a 1], B'_c' ⊗ [a' 1]⟩ for the weights of a layer and its bias.
            inputs = torch.addmm(ours.inputs.new_ones(()), ours.inputs, theirs.inputs.T)
            slopes = ours.slopes.flatten(0, 1) @ theirs.slopes.flatten(0, 1).T
            kernel.add_(slopes.reshape(kernel.shape).mul_(inputs[:, None, :, None]))
        return kernel.reshape(len(features) * outputs, len(others) * outputs)

    def blocks(self, features: Tensor) -> Tensor:
        """Return J(x)J(x)ᵀ of each sample alone.

        Args:
            features: Shape (n, ...), float64.

        Returns:
            Shape (n, C, C), float64, symmetric up to round-off.
        """
        layers, outputs = self.network.dense, self.num_outputs
        if layers is None:
            return torch.stack([self._block_by_rows(sample) for sample in torch.split(features, 1)])
        return torch.cat(
            [self._dense_blocks(batch, layers) for batch in self._batches(features, outputs)]
        )

    def norms(self, features: Tensor) -> Tensor:
        """Return ‖J(x)‖₂ of each sample.

        Args:
            features: Shape (n, ...), float64.

        Returns:
            Shape (n,), float64; infinity where float64 overflows.
        """
        blocks = self.blocks(features)
        finite = torch.isfinite(blocks).all(dim=2).all(dim=1)
        # LAPACK raises for all samples where one overflows.
        largest = torch.linalg.eigvalsh(blocks.masked_fill_(~finite[:, None, None], 0.0))[:, -1]
        norms: Tensor = largest.clamp_min_(0.0).sqrt_().masked_fill_(~finite, math.inf)
        return norms

    # --- One batch -------------------------------------------------------------------------------

    def _outputs(self, features: Tensor) -> Tensor:
        return self.network.head(self.network.parameters, features)

    def _push(self, features: Tensor, tangents: Mapping[str, Tensor]) -> Tensor:
        def along(tangent: dict[str, Tensor]) -> Tensor:
            pushed = torch.func.jvp(
                lambda parameters: self.network.head(parameters, features),
                (self.network.parameters,),
                (tangent,),
            )
            change: Tensor = pushed[1]
            return change

        if len(next(iter(tangents.values()))) == 1:
            # One direction needs no batching rules, which cost as much as the product.
            return along({name: value[0] for name, value in tangents.items()})[None]
        pushed: Tensor = torch.func.vmap(along)(dict(tangents))
        return pushed

    def _pull(self, features: Tensor, cotangents: Tensor, total: Tensor) -> None:
        # Added to `total`, a parameter at a time, so that no second copy of D numbers is held.
        pull: Callable[[Tensor], tuple[dict[str, Tensor]]] = torch.func.vjp(
            lambda parameters: self.network.head(parameters, features), self.network.parameters
        )[1]
        if len(cotangents) == 1:
            gradients = {name: value[None] for name, value in pull(cotangents[0])[0].items()}
        else:
            (gradients,) = torch.func.vmap(pull)(cotangents)
        begin = 0
        for name in self.network.parameters:
            part = gradients.pop(name).flatten(1)
            total[:, begin : begin + part.shape[1]].add_(part)
            begin += part.shape[1]

    def _kernel_by_rows(self, features: Tensor, others: Tensor) -> Tensor:
        parts = []
        for sample in torch.split(others, 1):
            images = self.jvp(features, self.rows(sample))  # (C, n, C)
            parts.append(images.permute(1, 2, 0).flatten(0, 1))
        return torch.cat(parts, dim=1)

    def _fill(self, rows: Tensor, features: Tensor, layers: tuple[DenseLayer, ...]) -> Tensor:
        # Row c of a dense layer is B_c ⊗ a, and B_c for its bias, in the order of the parameters.
        begin = 0
        for trace in self._traces(features, layers):
            outputs, inputs = trace.slopes.shape[2], trace.inputs.shape[1]
            weights = rows[:, :, begin : begin + outputs * inputs]
            shaped = weights.view(*trace.slopes.shape, inputs)
            torch.mul(trace.slopes[..., None], trace.inputs[:, None, None, :], out=shaped)
            begin += outputs * inputs
            rows[:, :, begin : begin + outputs] = trace.slopes
            begin += outputs
        return rows

    def _dense_blocks(self, features: Tensor, layers: tuple[DenseLayer, ...]) -> Tensor:
        blocks = features.new_zeros(len(features), self.num_outputs, self.num_outputs)
        for trace in self._traces(features, layers):
            inputs = trace.inputs.square().sum(dim=1).add_(1.0)
            blocks.add_((trace.slopes @ trace.slopes.mT).mul_(inputs[:, None, None]))
        return blocks

    def _block_by_rows(self, sample: Tensor) -> Tensor:
        rows = self.rows(sample)
        return rows @ rows.T

    def _traces(self, features: Tensor, layers: tuple[DenseLayer, ...]) -> list["_Trace"]:
        # What enters each dense layer, and how the outputs change with what leaves it.
        parameters, entering, left = self.network.parameters, [], features
        for layer in layers:
            entering.append(left)
            left = torch.addmm(parameters[layer.bias], left, parameters[layer.weight].T)
            if layer.activated:
                left = left.relu_()
        slopes = torch.eye(self.num_outputs, dtype=features.dtype, device=features.device)
        slopes = slopes.expand(len(features), -1, -1)
        traces: list[_Trace] = []
        # Backwards; the slope of a ReLU is read off what it let through.
        for index in range(len(layers) - 1, -1, -1):
            traces.append(_Trace(entering[index], slopes))
            if index > 0:
                slopes = slopes @ parameters[layers[index].weight]
                if layers[index - 1].activated:
                    slopes = slopes * (entering[index] > 0)[:, None, :]
        return traces[::-1]

    # --- Shapes ----------------------------------------------------------------------------------

    def _unflatten(self, directions: Tensor) -> dict[str, Tensor]:
        parameters = self.network.parameters
        parts = torch.split(directions, [value.numel() for value in parameters.values()], dim=1)
        return {
            name: part.reshape(len(directions), *value.shape)
            for (name, value), part in zip(parameters.items(), parts, strict=True)
        }

    def _batches(self, features: Tensor, directions: int) -> Iterator[Tensor]:
        entering = math.prod(features.shape[1:])
        width = entering + _COPIES * max(directions, 1) * self._floats_a_direction
        return iter(torch.split(features, max(1, _BATCH_FLOATS // width)))

    @property
    def _floats_a_direction(self) -> int:
        # What a sample's tangents pass through: the inputs of every linearised layer, but for those
        # of a first dense one, which do not depend on the parameters.
        layers = layers_of(self.network.spec)[-self.network.spec.layers :]
        sizes = [math.prod(layer.input_shape) for layer in layers]
        return self.num_outputs + sum(sizes[1:] if layers[0].dense else sizes)


@dataclass(frozen=True, slots=True, eq=False)
class _Trace:
    """What a dense layer's share of the Jacobian is made of: its row c is B_c ⊗ [a 1].

    Attributes:
        inputs: a, shape (n, in), float64.
        slopes: B, shape (n, C, out), float64: how the outputs change with what leaves the layer.
    """

    inputs: Tensor
    slopes: Tensor
