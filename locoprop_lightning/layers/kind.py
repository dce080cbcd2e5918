"""What kind of layer a module is: everything that is particular to one kind, and the registry of kinds."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from locoprop_lightning.errors import UserError
from locoprop_lightning.local.operator import LinearOperator


class LayerKind(ABC):
    """How layers of one kind act on their input.

    A kind has no state: it is asked with the module. A kind of one's own names its ``modules``, says how they act
    (``operator``) and is registered with ``register``. Its layers are local from then on.

    Attributes:
        modules: Classes of modules that it takes, and their subclasses. Where one has a forward of its own, a first
            pass must show that its output is still its operator's.
        paths: Classes that it takes by their import path, of packages that need not be installed.
        forwards: Methods that make the output, which is as the kind says where they are those of ``modules``.
        sparse: Whether rows that no gradient reaches may be left out.
        on_request: Whether its layers are local only where ``include`` names them.
    """

    sparse = False
    on_request = False
    modules: tuple[type[nn.Module], ...] = ()
    paths: tuple[str, ...] = ()
    forwards: tuple[str, ...] = ("forward",)

    def takes(self, module: nn.Module) -> bool:
        """Whether it takes a module of its classes; all of them if not overridden."""
        return True

    def refusal(self, module: Any) -> str:
        """Why a module that it takes cannot be local, for the table of layers; empty where it can."""
        return ""

    @abstractmethod
    def operator(self, module: Any, inputs: Sequence[Tensor]) -> LinearOperator:
        """The linear operator of the layer at its inputs.

        Args:
            module: The layer.
            inputs: Input of each call, whole numbers or float32 at least; their signatures are equal. Rows stand in the
                order of the calls, and within a call as ``rows`` has them.
        """

    @abstractmethod
    def empty(self, module: Any) -> Tensor:
        """An input without samples that the layer accepts, in the dtype of its weight."""

    def parameters(self, module: Any) -> tuple[Tensor, Tensor | None]:
        """Weight and bias [d_out] of the layer; it must have no other parameters.

        Raises:
            UserError: Where the layer has no ``weight``.
        """
        if not hasattr(module, "weight"):
            raise UserError(f"{type(self).__name__}: {type(module).__name__} has no `weight`; override parameters().")
        return module.weight, getattr(module, "bias", None)

    def input(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The input among the arguments of a call: the first one, or ``input``.

        Raises:
            UserError: Where there is none by that name.
        """
        if not args and "input" not in kwargs:
            raise UserError(f"{type(self).__name__}: a layer was called with {', '.join(kwargs)}; override input().")
        x: Tensor = args[0] if args else kwargs["input"]
        return x

    def call(self, module: Any, x: Tensor) -> Tensor:
        """Output of the layer at an input as ``input`` gives it."""
        out: Tensor = module(x)
        return out

    def units(self, module: Any) -> int:
        """Which dimension of the output holds the units, counted from the last, which is -1."""
        return -1

    def matrix(self, module: Any, x: Tensor) -> Tensor:
        """The weight, or a gradient of its shape, as the matrix W of the operator [d_out, d_in]."""
        return x.flatten(1)

    def from_matrix(self, module: Any, matrix: Tensor) -> Tensor:
        """The inverse of ``matrix``: a tensor of the weight's shape."""
        return matrix.reshape(self.parameters(module)[0].shape)

    def signature(self, module: Any, x: Tensor) -> Hashable:
        """What must be equal for the rows of several calls to be joined, of the input of one."""
        return ()

    def fits(self, module: Any, x: Tensor, output: Tensor) -> bool:
        """Whether an output has the rows that the operator gives of the input, as far as their number tells."""
        return True

    def counting(self, module: Any, inputs: Sequence[Tensor]) -> Tensor | None:
        """Which rows count for the weight, bool [n], of the inputs of some calls; None where all do."""
        return None

    def rows(self, module: Any, output: Tensor) -> Tensor:
        """An output of the layer, or a gradient w.r.t. it, as rows [n, d_out]."""
        units = self.units(module)
        return output.movedim(units, -1).reshape(-1, output.shape[units])

    def write_gradient(self, module: Any, matrix: Tensor, bias: Tensor | None) -> None:
        """Puts a matrix [d_out, d_in] and a vector [d_out] where the gradients of weight and bias are."""
        weight, own_bias = self.parameters(module)
        weight.grad = self.from_matrix(module, matrix.to(weight.dtype))
        if bias is not None and own_bias is not None:
            own_bias.grad = bias.to(own_bias.dtype)

    def classes(self, module: nn.Module) -> list[type]:
        """The classes of the module that this kind names."""
        return [
            c for c in type(module).__mro__ if c in self.modules or f"{c.__module__}.{c.__qualname__}" in self.paths
        ]

    def has_own_forward(self, module: nn.Module) -> bool:
        """Whether the module, or its class, may compute its output otherwise than the classes of this kind."""
        bases = self.classes(module)
        changed = all(
            any(getattr(type(module), name, None) is not getattr(base, name, None) for name in self.forwards)
            for base in bases
        )
        return changed or any(name in vars(module) for name in self.forwards) or bool(module._forward_hooks)


_KINDS: list[LayerKind] = []  # a later one comes first
Kind = TypeVar("Kind", bound=type[LayerKind])


def register(kind: Kind) -> Kind:
    """Adds a kind of layers, as a decorator of its class; of several that take a module, the latest is taken.

    Raises:
        UserError: For a class that is no kind, or not a whole one.
    """
    if not (isinstance(kind, type) and issubclass(kind, LayerKind)):
        raise UserError(f"register({kind!r}): takes a class derived from LayerKind.")
    modules = kind.modules
    if not (isinstance(modules, tuple) and modules + kind.paths and all(isinstance(m, type) for m in modules)):
        raise UserError(f"register({kind.__name__}): `modules` must be a tuple of classes of layers, not {modules!r}.")
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"register({kind.__name__}): must override {', '.join(missing)}.")
    if (kind.matrix is LayerKind.matrix) != (kind.from_matrix is LayerKind.from_matrix):
        raise UserError(f"register({kind.__name__}): override matrix and from_matrix together; each undoes the other.")
    path = f"{kind.__module__}.{kind.__qualname__}"  # a module that is loaded again brings its kinds again
    others = [other for other in _KINDS if f"{type(other).__module__}.{type(other).__qualname__}" != path]
    _KINDS[:] = [kind(), *others]
    return kind


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a module, None where no kind takes it."""
    return next((kind for kind in _KINDS if kind.classes(module) and kind.takes(module)), None)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one after the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
