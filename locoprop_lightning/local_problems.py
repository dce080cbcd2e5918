"""From what a pass recorded of a layer to its local problem: targets T = f(A) - lambda_a D."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from locoprop_lightning.distributed import SharedBatch
from locoprop_lightning.errors import UserError
from locoprop_lightning.layers import Record
from locoprop_lightning.layers.record import Content
from locoprop_lightning.local import LinearOperator, LocalProblem, Rows, State
from locoprop_lightning.local_layer import LocalLayer
from locoprop_lightning.oracles import Oracle
from locoprop_lightning.oracles.grouped import GroupedOracle
from locoprop_lightning.settings import LocalSettings, Scheduled


def make_problem(
    layer: LocalLayer,
    record: Record,
    draws: list[Sequence[Tensor | None] | None],
    oracle: Oracle,
    settings: LocalSettings,
    scheduled: Scheduled,
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
        scheduled: What holds in place of the settings.
        batch: The batch.
        rows: What the rows at hand stand for.
        rounded: Whether autocast has rounded the weight gradient.
        rate: What multiplies the rates of inner steps.
    """
    if record.content != Content.SOLVABLE:  # other processes alone have rows
        record, draws = record.without_rows(), [None] * len(draws)
    every, own, reduces = record.gradient(), record.operator(), settings.shared_rows == "reduce"
    g, sampled = every, [every if draw is None else record.join(draw) for draw in draws]
    pre_activation: Callable[[LinearOperator], Tensor] = record.pre_activation
    if reduces:
        blocks, expanded = record.blocks(layer.name, batch.samples[batch.processes.rank]), own
        own, g, sampled = own.average(blocks), blocks.sums(every), [blocks.sums(x) for x in sampled]
        pre_activation = lambda _: blocks.means(record.pre_activation(expanded))  # noqa: E731
    terms, state = batch.terms, layer.oracle_state
    if layer.unit_groups > 1:
        if own.groups > 1:
            raise UserError(
                f"overrides: unit_groups={layer.unit_groups}: layer {layer.name!r} is a convolution with groups of "
                "its own; leave it out."
            )
        oracle = GroupedOracle(oracle, layer.unit_groups)
    shard = {"rows": rows} if batch.processes.size > 1 else {}  # an oracle may do without in one process
    oracle.observe(g, sampled, terms, state, **shard)
    operator = batch.processes.operator(own, rows)
    weight, bias = layer.matrices()
    reused, weight_direction, prepare = None if rounded else layer.reusable(g.dtype), None, None
    # G^T Y as a tensor that the oracle may write over
    product = partial((operator.expanded or operator).adjoint, every)
    plain = product if reused is None else partial(torch.cat, reused, 1)
    if reused is not None or oracle.asks_inverse or reduces:
        weight_direction = partial(_weight_direction, oracle, plain, terms, state, required=reduces)
    if oracle.asks_inverse:
        prepare = lambda inverse: oracle.prepare(plain(), inverse, operator.groups, state)  # noqa: E731
    lambda_a = layer.lambda_a * scheduled.lambda_a
    lambda_r: float | Tensor = layer.lambda_r * scheduled.lambda_r
    if settings.damping == "relative":
        mean = operator.trace() / operator.width
        lambda_r = (lambda_r * mean).clamp_min(torch.finfo(mean.dtype).tiny)  # inputs of zeros
    assert layer.transfer is not None
    return LocalProblem(
        operator,
        pre_activation=partial(pre_activation, operator),
        direction=partial(oracle.direction, g, terms, state),
        weight=weight.to(g.dtype),
        bias=None if bias is None else bias.to(g.dtype),
        transfer=layer.transfer,
        lambda_a=lambda_a,
        lambda_r=lambda_r,
        rate=rate,
        weight_direction=weight_direction,
        prepare=prepare,
        length=lambda_a if settings.step_length == "activations" else None,
        name=layer.name,
    )


def _weight_direction(
    oracle: Oracle, plain: Callable[[], Tensor], terms: int, state: State, required: bool
) -> Tensor | None:
    """What the oracle makes of the weight gradient, which rows that are means of rows do not give.

    Raises:
        UserError: Where it makes nothing of it.
    """
    made = oracle.weight_direction(plain(), terms, state)
    if made is None and required:
        raise UserError(
            f"shared_rows='reduce': oracle={type(oracle).__name__} makes no direction of the weight gradient; give it "
            "a weight_direction, or take 'expand'."
        )
    return made
