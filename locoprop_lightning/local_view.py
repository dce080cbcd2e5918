"""How a module of local training shows itself at a prompt and in a notebook."""

from torch import nn

from locoprop_lightning.engine import LocalEngine
from locoprop_lightning.layer_table import LayerTable
from locoprop_lightning.layers import LayerInfo
from locoprop_lightning.layers.compiled import named_modules
from locoprop_lightning.layers.discovery import candidates, reasons
from locoprop_lightning.reprs import sized
from locoprop_lightning.tasks import Task

AHEAD = "found with the first batch"


class LocalView:
    """Shows what trains what: the method in one line, and the layers as a table.

    Attributes:
        network: The network.
        task: The task.
        engine: Its local layers.
    """

    network: nn.Module
    task: Task
    engine: LocalEngine

    @property
    def layers(self) -> LayerTable:
        """The table of layers, of who trains each; the transfers are known from the first batch of a fit on."""
        engine, settings = self.engine, self.engine.settings
        if engine.found is not None:
            return LayerTable(engine.found, engine.trained)
        local = candidates(self.network, settings.skip, settings.include)
        told = reasons(self.network, settings.skip, settings.include)
        found, trained, solver = [], {}, type(engine.solver).__name__
        for name, module in named_modules(self.network):
            if any(True for _ in module.parameters(recurse=False)):
                found.append(LayerInfo(name, module, None, AHEAD if name in local else told.get(name, "")))
                if told.get(name) != "frozen":
                    trained[name] = solver if name in local else "rest_optimizer"
        return LayerTable(found, trained)

    def __repr__(self) -> str:
        return shown(self, self.network, self.engine, self.task)


def shown(owner: object, network: nn.Module, engine: LocalEngine, *parts: object) -> str:
    """An object that trains a network locally, in one line.

    Args:
        owner: The object.
        network: The network.
        engine: Its local layers.
        parts: What else it is made of.
    """
    told = [
        sized(network),
        *map(repr, (*parts, engine.solver, engine.oracle)),
        *(f"{name}={value!r}" for name, value in engine.settings.told().items()),
    ]
    return f"{type(owner).__name__}({', '.join(told)})"
