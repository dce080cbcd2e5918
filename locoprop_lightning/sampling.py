"""Labels drawn from the model's own prediction, for oracles whose statistics are the Fisher's."""

from typing import Any
from zlib import crc32

import torch

from locoprop_lightning.distributed import SharedBatch
from locoprop_lightning.engine import Draw, LocalEngine
from locoprop_lightning.layers import Tape
from locoprop_lightning.oracles.grouped import group_states
from locoprop_lightning.seed import run_seed
from locoprop_lightning.tasks import Task, detached


def sampled_gradients(
    engine: LocalEngine,
    tape: Tape,
    task: Task,
    output: Any,
    target: Any,
    batch: SharedBatch,
    step: int,
    part: int = 0,
) -> list[Draw]:
    """Gradients of drawn labels, as often as the oracle asks; the draws have a seed of their own.

    Args:
        engine: The local layers and the oracle.
        tape: The tape, before the backward pass.
        task: Draws the labels.
        output: Output of the network.
        target: What it is compared with, which says which labels count.
        batch: The batch.
        step: The step, which the draws depend on.
        part: Which of the step's batches it is.

    Returns:
        For each draw the gradients of each call by layer, as ``Record.join`` takes them.
    """
    known = {
        f"{name} {i}": state
        for name, layer in engine.local.items()
        if layer.oracle_state
        for i, state in enumerate(group_states(layer.oracle_state, layer.unit_groups))
    }
    draws = engine.oracle.draws(known or {name: {} for name in tape.records})
    if draws == 0:
        return []
    seed, prediction = [run_seed(), step, *([f"part {part}"] if part else [])], detached(task.logits(output))
    if batch.alike:  # the labels are those that one process would draw
        prediction = batch.processes.interleave(prediction, batch.outputs)
    else:
        seed.append(batch.processes.rank)
    generator = torch.Generator(batch.device).manual_seed(crc32(" ".join(map(str, seed)).encode()))
    labels = [task.sample_labels(prediction, generator) for _ in range(draws)]
    if batch.alike:
        labels = [batch.processes.own_part(label, batch.outputs) for label in labels]
    return [tape.gradients(batch.weigh(task.sampled_loss(output, task.hide(label, target)))) for label in labels]
