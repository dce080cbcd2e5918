"""A run is loaded from its folder, and a module from its checkpoint, without saying again what they are made of."""

import re

import pytest
import torch

from locoprop_lightning import BackpropModule, LocoPropModule, UserError, load_run
from locoprop_lightning.cli import main
from locoprop_lightning.data import Digits
from locoprop_lightning.networks import MLP
from locoprop_lightning.tasks import Classification
from tests.support import ROOT, quiet_trainer, same

FIT = ["fit", "--config", str(ROOT / "configs" / "digits" / "foof_rms.yaml"), "--trainer.accelerator=cpu"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=0", "--local_losses.every_n_steps=0"]


@pytest.fixture
def runs(folder):
    main([*FIT, *QUIET, "--trainer.max_epochs=3"])
    return folder / "runs" / "digits" / "foof_rms"


def test_a_run_is_loaded_from_its_folder(runs, capsys):
    folder = runs / "version_0"
    torch.manual_seed(8)
    before = torch.get_rng_state()
    best, last = load_run(folder), load_run(folder, "last")
    assert torch.equal(before, torch.get_rng_state())
    assert (best.checkpoint.name, last.checkpoint.name, last.step) == ("best.ckpt", "step=36.ckpt", 36)
    assert load_run(folder, "step=0.ckpt").step == 0 and load_run(runs).checkpoint == best.checkpoint
    assert load_run(last.checkpoint).step == 36
    assert type(best.network) is MLP and not best.network.training and best.configuration["data"]["init_args"]
    data = best.data()
    assert isinstance(data, Digits) and data.batch_size == 128
    stored = torch.load(last.checkpoint, weights_only=True)
    assert same(dict(last.module.state_dict()), stored["state_dict"])
    assert "preconditioner" in last.module.engine.layers["1"].solver_state
    # what the command says of these weights is what they do
    (found,) = quiet_trainer().test(best.module, data, verbose=False)
    main(["test", *FIT[1:], *QUIET, "--ckpt_path", "best"])
    said = float(re.search(r"test/accuracy\s+│\s+(\S+)", capsys.readouterr().out)[1])
    assert found["test/accuracy"] == pytest.approx(said) and said > 0.9
    assert f"{best.checkpoint.name}', step {best.step}, LocoPropModule(" in repr(best)


def test_a_checkpoint_alone_is_enough(runs, tmp_path):
    path = tmp_path / "elsewhere.ckpt"
    path.write_bytes((runs / "version_0" / "checkpoints" / "step=36.ckpt").read_bytes())
    module = LocoPropModule.load_from_checkpoint(path)
    assert module.engine.settings.lambda_r == 10 and type(module.solver).__name__ == "ClosedForm"
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(load_run(path).network(x), module.network(x))
    # a fit of the loaded module writes checkpoints from which it is loaded again
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, Digits(batch_size=64))
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    again = LocoPropModule.load_from_checkpoint(tmp_path / "again.ckpt")
    assert same(dict(again.state_dict()), dict(module.state_dict()))
    with pytest.raises(UserError, match="is of a LocoPropModule, not of a BackpropModule; load it by that class"):
        BackpropModule.load_from_checkpoint(path)
    with pytest.raises(UserError, match="weights_only=False: would run whatever code"):
        LocoPropModule.load_from_checkpoint(path, weights_only=False)


def test_a_run_of_an_earlier_version_is_loaded_by_the_file_beside_it(runs):
    folder = runs / "version_0" / "checkpoints"
    state = torch.load(folder / "best.ckpt", weights_only=True)
    del state["configuration"]
    torch.save(state, folder / "best.ckpt")
    assert type(load_run(folder.parent).network) is MLP
    (folder.parent / "config.yaml").unlink()
    with pytest.raises(UserError, match="does not say what its module was made of"):
        load_run(folder.parent)


def test_a_module_that_was_made_in_python_is_loaded_with_its_arguments(tmp_path):
    module = BackpropModule(MLP(64, 8, 1), Classification(), torch.optim.SGD)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, Digits(batch_size=64))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(UserError, match="own.ckpt: does not say what its module was made of"):
        BackpropModule.load_from_checkpoint(tmp_path / "own.ckpt")
    given = {"network": MLP(64, 8, 1), "task": Classification(), "optimizer": torch.optim.SGD}
    again = BackpropModule.load_from_checkpoint(tmp_path / "own.ckpt", **given)
    assert same(dict(again.state_dict()), dict(module.state_dict()))


def test_what_cannot_be_loaded_is_named(runs, tmp_path):
    main([*FIT, *QUIET, "--trainer.max_steps=1"])
    with pytest.raises(UserError, match="there is no such folder"):
        load_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds 2 runs, such as .*version_1; name one"):
        load_run(runs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint of a run"):
        load_run(tmp_path / "empty")
    with pytest.raises(UserError, match=r"has no such file; there are best.ckpt, step=\d+.ckpt, step=\d+.ckpt"):
        load_run(runs / "version_0", "step=7.ckpt")
    path = runs / "version_0" / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    state["configuration"] = state["configuration"].replace("networks.MLP", "networks.Gone")
    torch.save(state, path)
    with pytest.raises(UserError, match="its model cannot be made again: .*Gone"):
        load_run(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a checkpoint|is damaged"):
        load_run(path)
