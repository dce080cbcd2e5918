"""From what a pass recorded of a layer to its local problem: targets T = f(A) - lambda_a D."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from locoprop_lightning.distributed import SharedBatch
from locoprop_lightning.layers import Record
from locoprop_lightning.layers.tape import Content
from locoprop_lightning.local import LocalProblem, Rows
from locoprop_lightning.local_layer import LocalLayer
from locoprop_lightning.oracles import Oracle
from locoprop_lightning.settings import LocalSettings


def make_problem(
    layer: LocalLayer,
    record: Record,
    draws: list[Sequence[Tensor | None] | None],
    oracle: Oracle,
    settings: LocalSettings,
    batch: SharedBatch,
    rows: Rows,
    rounded: bool,
    rate: float,
) -> LocalProblem:
    """The problem of one layer, after the oracle has seen its gradients.

    Args:
        layer: The layer.
        record: What was recorded of it.
        draws: Gradients of drawn labels, of each of its calls.
        oracle: Direction of the targets.
        settings: What holds for all layers.
        batch: The batch.
        rows: What the rows at hand stand for.
        rounded: Whether autocast has rounded the weight gradient.
        rate: What multiplies the rates of inner steps.
    """
    if record.content != Content.SOLVABLE:  # other processes alone have rows
        record, draws = record.without_rows(), [None] * len(draws)
    g, terms, state = record.gradient(), batch.terms, layer.oracle_state
    shard = {"rows": rows} if batch.processes.size > 1 else {}  # an oracle may do without in one process
    oracle.observe(g, [g if draw is None else record.join(draw) for draw in draws], terms, state, **shard)
    operator = batch.processes.operator(record.operator(), rows)
    weight, bias = layer.matrices()
    reused, weight_direction, prepare = None if rounded else layer.reusable(g.dtype), None, None
    # G^T Y as a tensor that the oracle may write over
    plain = partial(operator.adjoint, g) if reused is None else partial(torch.cat, reused, 1)
    if reused is not None or oracle.asks_inverse:
        weight_direction = lambda: oracle.weight_direction(plain(), terms, state)  # noqa: E731
    if oracle.asks_inverse:
        prepare = lambda inverse: oracle.prepare(plain(), inverse, operator.groups, state)  # noqa: E731
    lambda_r: float | Tensor = layer.lambda_r
    if settings.damping == "relative":
        mean = operator.trace() / operator.width
        lambda_r = layer.lambda_r * mean.clamp_min(torch.finfo(mean.dtype).tiny)  # inputs of zeros
    assert layer.transfer is not None
    return LocalProblem(
        operator,
        pre_activation=partial(record.pre_activation, operator),
        direction=partial(oracle.direction, g, terms, state),
        weight=weight.to(g.dtype),
        bias=None if bias is None else bias.to(g.dtype),
        transfer=layer.transfer,
        lambda_a=layer.lambda_a,
        lambda_r=lambda_r,
        rate=rate,
        weight_direction=weight_direction,
        prepare=prepare,
        length=layer.lambda_a if settings.step_length == "activations" else None,
        name=layer.name,
    )
