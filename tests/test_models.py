"""Networks of other packages, and what is particular about them: tiny, with random weights, a fit of 20 steps."""

import copy
import gc
import importlib
import math
import warnings

import psutil
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from locoprop_lightning import LocoPropModule
from locoprop_lightning.errors import UserError
from locoprop_lightning.layers.compiled import original
from locoprop_lightning.oracles import RMSOracle, SpectralOracle, WhitenedOracle
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification, HuggingFaceTask, Task
from tests.support import close, quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of the packages, about each other and themselves
]
TOKENS, LENGTH, CLASSES, SAMPLES, STEPS = 32, 8, 4, 32, 20
SIZES = dict(
    vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, pad_token_id=0
)
GPT2 = dict(vocab_size=TOKENS, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
T5 = dict(
    vocab_size=TOKENS,
    d_model=32,
    d_kv=16,
    d_ff=64,
    num_layers=2,
    num_heads=2,
    decoder_start_token_id=0,
    dropout_rate=0.0,
)
CAUSAL = SIZES | dict(max_position_embeddings=16, bos_token_id=None, eos_token_id=None)


def package(name):
    """A package that is a test dependency only; the test is skipped where it is missing."""
    pytest.importorskip(name.partition(".")[0], reason=f"{name.partition('.')[0]} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what packages say when they are imported
        return importlib.import_module(name)


def texts(labels="next_token"):
    """Tokens that count upwards, half of them padded at the end."""
    ids = torch.arange(LENGTH) + 1 + torch.arange(SAMPLES)[:, None] % 7
    mask = torch.ones_like(ids)
    mask[::2, -2:] = 0
    wanted = {"next_token": ids, "sequence": ids[:, 0] % CLASSES, "masked": torch.full_like(ids, -100)}[labels]
    if labels == "masked":
        wanted[:, [1, 4]] = ids[:, [1, 4]]
        ids = torch.where(wanted == -100, ids, TOKENS - 1)
    return [dict(input_ids=i, attention_mask=m, labels=y) for i, m, y in zip(ids, mask, wanted, strict=True)]


def images(size=32):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    noise = torch.randn(SAMPLES, 3, size, size, generator=generator)
    return noise / 3 + labels[:, None, None, None] / 2, labels


def pairs():
    return list(zip(*images(), strict=True))


def named_pixels():
    return [dict(pixel_values=x, labels=y) for x, y in pairs()]


def halves():
    """Images with a label a pixel: which half it is in, none in the middle."""
    x, _ = images(16)
    y = torch.zeros(SAMPLES, 16, 16, dtype=torch.long)
    y[:, :, 8:] = 1
    x[:, 0] += y
    y[:, :, 7:9] = -100
    return list(zip(x, y, strict=True))


def graph():
    """One graph of 40 nodes, edges mostly within classes, and labels of two thirds of the nodes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % CLASSES
    x = torch.randn(40, 8, generator=generator)
    x[:, :CLASSES] += F.one_hot(labels, CLASSES)
    start = torch.randint(40, (160,), generator=generator)
    end = (start + CLASSES * torch.randint(10, (160,), generator=generator)) % 40
    return package("torch_geometric.data").Data(x, torch.stack([start, end]), y=labels, train=torch.arange(40) % 3 > 0)


class Nodes(Classification):
    """Classes of the nodes of a graph, of which some are for training."""

    def inputs(self, batch):
        return batch.x, batch.edge_index

    def target(self, batch):
        return batch.y.masked_fill(~batch.train, -100)


def gpt2(**settings):
    transformers = package("transformers")
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **settings))


def hugging_face(model, config, **settings):
    transformers = package("transformers")
    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def timm(name, **settings):
    return package("timm").create_model(name, num_classes=CLASSES, **settings)


def mixer():
    sizes = dict(img_size=32, patch_size=8, num_blocks=2, embed_dim=32, num_classes=CLASSES)
    return package("timm.models.mlp_mixer").MlpMixer(**sizes)


def graph_network(name):
    layers = package("torch_geometric.nn")
    convolution = getattr(layers, name)
    steps = [(convolution(8, 16), "x, edges -> x"), nn.ReLU(), (convolution(16, CLASSES), "x, edges -> x")]
    return layers.Sequential("x, edges", steps)


def adapted():
    peft = package("peft")
    return peft.get_peft_model(gpt2(), peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))


class UNet(nn.Module):
    """Down and up again, with what was there before beside it."""

    def __init__(self, width=8):
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.bottom = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.leave, self.head = nn.Conv2d(2 * width, width, 3, padding=1), nn.Conv2d(width, 2, 1)
        self.norm = nn.GroupNorm(2, width)

    def forward(self, x):
        top = self.norm(self.enter(x)).relu()
        bottom = self.bottom(self.down(top).relu()).relu()
        return self.head(self.leave(torch.cat([top, self.up(bottom)], 1)).relu())


class Cast(nn.Linear):
    """As the layers of the public benchmark of language models are: the weight follows the input's type."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class Again(nn.Module):
    """Calls one layer 20 times."""

    def __init__(self):
        super().__init__()
        self.enter, self.again, self.head = Cast(3 * 64, 16, bias=False), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.enter(x[:, :, ::4, ::4].flatten(1))
        for _ in range(20):
            x = x + self.again(x).tanh() / 20
        return self.head(x)


class Experts(nn.Module):
    """Each sample goes to the expert that its router prefers, of eight; none goes to the last."""

    def __init__(self):
        super().__init__()
        self.enter, self.router, self.head = nn.Linear(3 * 64, 16), nn.Linear(16, 8), nn.Linear(16, CLASSES)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        with torch.no_grad():
            self.router.bias[-1] = -1e3

    def forward(self, x):
        x = self.enter(x[:, :, ::4, ::4].flatten(1)).tanh()
        weights, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            mine = chosen == index
            out[mine] = weights[mine, None] * expert(x[mine]).tanh()  # of no rows for some
        return self.head(x + out)


class Physics(nn.Module):
    """What is left over of an equation of u and its slope, u an MLP 4-32-32-1."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            u = self.u(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return slope.sum(1, keepdim=True) + u


class Residual(Task):
    """The square of what is left over of an equation with a known right-hand side."""

    def loss(self, output, target):
        return (output - target).square().mean()


def points():
    x = torch.rand(SAMPLES, 4, generator=torch.Generator().manual_seed(0))
    return list(zip(x, x.sum(1, keepdim=True).sin(), strict=True))


NEXT, LABELS, VIT = HuggingFaceTask("next_token"), HuggingFaceTask(), dict(image_size=32, patch_size=8)
FAMILIES = {  # network, task, samples, share of the parameters that is local at least, embeddings left out
    "gpt2": (gpt2, NEXT, texts, 0.95),
    "llama": (
        lambda: hugging_face("LlamaForCausalLM", "LlamaConfig", **CAUSAL, num_key_value_heads=1),
        NEXT,
        texts,
        0.95,
    ),
    "bert": (lambda: hugging_face("BertForMaskedLM", "BertConfig", **SIZES), LABELS, lambda: texts("masked"), 0.95),
    "bert_of_sequences": (
        lambda: hugging_face("BertForSequenceClassification", "BertConfig", **SIZES, num_labels=CLASSES),
        LABELS,
        lambda: texts("sequence"),
        0.95,
    ),
    "vit": (
        lambda: hugging_face(
            "ViTForImageClassification",
            "ViTConfig",
            **VIT,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=CLASSES,
        ),
        LABELS,
        named_pixels,
        0.95,
    ),
    "timm_vit": (lambda: timm("test_vit", img_size=32), Classification(CLASSES), pairs, 0.95),
    "convnext": (lambda: timm("test_convnext"), Classification(CLASSES), pairs, 0.95),
    "efficientnet": (lambda: timm("test_efficientnet"), Classification(CLASSES), pairs, 0.95),
    "mixer": (mixer, Classification(CLASSES), pairs, 0.95),
    "gcn": (lambda: graph_network("GCNConv"), Nodes(CLASSES), lambda: [graph()], 0.9),
    "gat": (lambda: graph_network("GATConv"), Nodes(CLASSES), lambda: [graph()], 0.75),
    "lora": (adapted, NEXT, texts, 1.0),
    "unet": (UNet, Classification(2), halves, 0.95),
    "mixtral": (
        lambda: hugging_face(
            "MixtralForCausalLM", "MixtralConfig", **CAUSAL, num_key_value_heads=1, num_local_experts=4
        ),
        NEXT,
        texts,
        0.1,  # fused experts
    ),
    "mamba": (
        lambda: hugging_face("MambaForCausalLM", "MambaConfig", vocab_size=TOKENS, hidden_size=16, num_hidden_layers=2),
        NEXT,
        texts,
        0.5,
    ),
    "one_layer_20_times": (Again, Classification(CLASSES), pairs, 1.0),
    "experts": (Experts, Classification(CLASSES), pairs, 1.0),
    "compiled": (lambda: torch.compile(Again(), backend="aot_eager"), Classification(CLASSES), pairs, 1.0),
    "physics": (Physics, Residual(), points, 0.0),
}


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def train(network, task, samples, folder=None, checkpoint=None, steps=STEPS, callbacks=(), **settings):
    """A fit, with a checkpoint in the middle where there is a folder; the module and its losses."""
    common = dict(oracle=RMSOracle(), objective="squared", damping="relative", lambda_a=0.05, lambda_r=0.1)
    rest = dict(rest_optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    module, losses = LocoPropModule(network, task, ClosedForm(), **common | rest | settings), Losses()
    whole = isinstance(samples[0], tuple | dict)
    loader = DataLoader(samples, SAMPLES // 2) if whole else DataLoader(samples, batch_size=None)
    keep = [] if folder is None else [ModelCheckpoint(folder, "{step}", every_n_train_steps=STEPS // 2, save_top_k=-1)]
    trainer = quiet_trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=[losses, *keep, *callbacks],
        enable_checkpointing=bool(keep),
    )
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return module, losses.values


def deterministic(network):
    """The same without dropout, whose draws no checkpoint holds."""
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return network


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name, tmp_path):
    """The loss falls, every parameter is trained or named, most are local, and a checkpoint goes on as the fit did."""
    make, task, samples, share = FAMILIES[name]
    samples = samples()
    network = original(made := deterministic(make()))
    before = {key: p.detach().clone() for key, p in network.named_parameters() if p.requires_grad}
    module, losses = train(made, task, samples, tmp_path)
    assert len(losses) == STEPS and all(map(math.isfinite, losses))
    assert sum(losses[-4:]) / 4 < 0.9 * losses[0], losses
    said = {layer.name for layer in module.engine.found if not layer.local and layer.reason} | set(module.untouched)
    for key, old in before.items():
        without_rows = name == "experts" and key.startswith("experts.")  # no sample went there
        moved = not torch.equal(network.get_parameter(key), old)
        assert moved or without_rows or said & {key, key.rpartition(".")[0]}, key
    embedded = sum(p.numel() for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    if name == "lora":
        embedded = 0  # frozen
    local = sum(p.numel() for layer in module.engine.local.values() for p in layer.module.parameters())
    assert local >= share * (sum(p.numel() for p in before.values()) - embedded)
    middle = tmp_path / f"step={STEPS // 2}.ckpt"
    other, rest = train(deterministic(make()), task, samples, tmp_path, middle)
    assert len(rest) == STEPS // 2 and rest == losses[STEPS // 2 :]
    for a, b in zip(network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)


def tokens(padded):
    """Tokens with a class each, that of every fifth missing; padded ones have no class."""
    ids = 1 + torch.arange(SAMPLES * LENGTH).reshape(SAMPLES, LENGTH) * 7 % (TOKENS - 1)
    mask, labels = torch.ones_like(ids), torch.where(ids % 5 > 0, ids % CLASSES, -100)
    if padded:
        more = torch.zeros(SAMPLES, 3, dtype=torch.long)
        ids, mask, labels = (torch.cat(parts, 1) for parts in ((ids, more), (mask, more), (labels, more - 100)))
    return [dict(input_ids=i, attention_mask=m, labels=y) for i, m, y in zip(ids, mask, labels, strict=True)]


PADDED = {
    "gpt2": (gpt2, NEXT),
    "bert": (lambda: hugging_face("BertForTokenClassification", "BertConfig", **SIZES, num_labels=CLASSES), LABELS),
    "bert_of_sequences": (
        lambda: hugging_face("BertForSequenceClassification", "BertConfig", **SIZES, num_labels=CLASSES),
        LABELS,
    ),
    "gpt2_of_sequences": (
        lambda: hugging_face(
            "GPT2ForSequenceClassification", "GPT2Config", **GPT2 | dict(pad_token_id=0), num_labels=CLASSES
        ),
        LABELS,
    ),
    "t5": (
        lambda: hugging_face("T5ForConditionalGeneration", "T5Config", **T5),
        HuggingFaceTask("classes"),
    ),
}


@pytest.mark.parametrize("oracle", [RMSOracle(), WhitenedOracle(power=0.5, samples=0), SpectralOracle()], ids=repr)
@pytest.mark.parametrize("name", PADDED)
def test_a_padded_batch_trains_as_one_without_padding(name, oracle):
    make, task = PADDED[name]
    # A first token attends to itself alone: its query's gradient is zero but for rounding, and its row counts or not.
    skip = ["decoder.block.*.SelfAttention.q"] if name == "t5" else []
    of_samples = "sequences" in name
    torch.manual_seed(0)
    network, found = deterministic(make()).double(), []
    start, rest = copy.deepcopy(network), lambda p: torch.optim.SGD(p, lr=0.1)
    for padded in (False, True):
        samples = tokens(padded)
        if of_samples:
            samples = [one | dict(labels=one["input_ids"][0] % CLASSES) for one in samples]
        module, losses = train(
            copy.deepcopy(network), task, samples, steps=2, oracle=oracle, rest_optimizer=rest, lambda_a=0.05, skip=skip
        )
        found.append((dict(module.network.named_parameters()), torch.tensor(losses)))
    close(found[1][1], found[0][1], 1e-6)
    for key, value in found[0][0].items():
        close(found[1][0][key], value, 1e-10)
    moved = {n for n, p in start.named_parameters() if not torch.equal(found[0][0][n], p)}
    assert {n for n, p in start.named_parameters() if p.dim() > 1 and ("encoder.layer" in n or ".h." in n)} <= moved


@pytest.mark.parametrize("seed", range(4))
def test_labels_of_the_wrong_kind_are_noticed_at_random_initialisation(seed):
    """Where both losses are nearly that of a guess."""
    torch.manual_seed(seed)
    untied = CAUSAL | dict(tie_word_embeddings=False)
    wrong = {
        "next_token": (lambda: hugging_face("LlamaForCausalLM", "LlamaConfig", **untied), HuggingFaceTask("classes")),
        "classes": (lambda: hugging_face("BertForMaskedLM", "BertConfig", **SIZES), HuggingFaceTask("next_token")),
    }
    for right, (make, task) in wrong.items():
        with pytest.raises(UserError, match=f"takes them as '{right}'; set that"):
            train(make(), task, texts(), steps=1)


class Memory(Callback):
    """Tensors alive and memory in use, after some batches and after many."""

    def __init__(self, *batches):
        self.batches, self.tensors, self.bytes = batches, [], []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx in self.batches:
            gc.collect()
            self.tensors.append(sum(isinstance(x, torch.Tensor) for x in gc.get_objects()))
            self.bytes.append(psutil.Process().memory_info().rss)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_memory_is_flat_over_batches_of_validation(name):
    make, task, samples, _ = FAMILIES[name]
    memory, (batch, *_) = Memory(49, 299), samples()
    if isinstance(batch, tuple | dict):
        (batch,) = DataLoader([batch])
    module = LocoPropModule(make(), task, ClosedForm(), 0.1, 0.1, "squared")
    trainer = quiet_trainer(callbacks=[memory], inference_mode=name != "physics")
    trainer.validate(module, DataLoader([batch] * 300, batch_size=None), verbose=False)
    assert memory.tensors[1] <= memory.tensors[0]
    assert memory.bytes[1] - memory.bytes[0] < 1 << 20


WITH_EMBEDDINGS = {
    "gpt2": (lambda: gpt2(tie_word_embeddings=False), NEXT, texts, ["*wte", "*wpe"]),
    "llama": (
        lambda: hugging_face("LlamaForCausalLM", "LlamaConfig", **CAUSAL, tie_word_embeddings=False),
        NEXT,
        texts,
        ["*embed_tokens"],
    ),
    "bert": (
        lambda: hugging_face("BertForMaskedLM", "BertConfig", **SIZES, tie_word_embeddings=False),
        LABELS,
        lambda: texts("masked"),
        ["*_embeddings"],
    ),
}


@pytest.mark.parametrize("name", WITH_EMBEDDINGS)
def test_with_its_embeddings_nearly_all_of_a_model_is_local(name):
    make, task, samples, include = WITH_EMBEDDINGS[name]
    module, losses = train(network := deterministic(make()), task, samples(), include=include)
    local = sum(p.numel() for layer in module.engine.local.values() for p in layer.module.parameters())
    assert local >= 0.95 * sum(p.numel() for p in network.parameters())
    assert sum(losses[-4:]) / 4 < 0.9 * losses[0]


def test_gradients_within_a_forward_pass_need_a_trainer_without_inference_mode():
    module = LocoPropModule(Physics(), Residual(), ClosedForm(), 0.1, 0.1, "squared")
    data = DataLoader(points(), SAMPLES)
    with pytest.raises(UserError, match="Physics: takes gradients in its forward pass"):
        quiet_trainer().validate(module, data, verbose=False)
    (found,) = quiet_trainer(inference_mode=False).validate(module, data, verbose=False)
    assert math.isfinite(found["val/loss"])


def notes(module):
    return {layer.name: layer.reason for layer in module.engine.found if layer.reason}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    network = deterministic(gpt2(use_cache=False))
    network.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, losses = train(network, NEXT, texts(), steps=4)
    torch.manual_seed(0)
    told = {name: note for name, note in notes(module).items() if ".h." in name}
    assert losses[-1] < losses[0]
    if reentrant:
        assert len(told) == 8 and all("checkpoint(use_reentrant=True)" in note for note in told.values())
    else:
        assert not told


REFUSALS = {
    "fused_experts": (
        lambda: hugging_face(
            "MixtralForCausalLM", "MixtralConfig", **CAUSAL, num_key_value_heads=1, num_local_experts=4
        ),
        "model.layers.0.mlp.experts",
        "several matrices in one tensor",
    ),
    "dt_proj": (
        lambda: hugging_face("MambaForCausalLM", "MambaConfig", vocab_size=TOKENS, hidden_size=16, num_hidden_layers=1),
        "backbone.layers.0.mixer.dt_proj",
        "weights are read outside the layer",
    ),
    "tied_head": (gpt2, "lm_head", "weights are shared with another layer"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_parts_that_are_not_local_say_why(name):
    make, layer, reason = REFUSALS[name]
    module, losses = train(make(), NEXT, texts(), steps=3)
    assert notes(module)[layer].startswith(reason)
    assert not module.untouched and losses[-1] < losses[0]


@pytest.mark.parametrize("make", [Again, Experts])
def test_layers_that_are_called_often_or_without_rows(make):
    network = make()
    unused = network.experts[-1].weight.detach().clone() if make is Experts else None
    module, losses = train(network, Classification(CLASSES), pairs())
    assert losses[-1] < 0.5 * losses[0] and set(notes(module).values()) <= {"no gradient in the first batch"}
    assert len(module.engine.local) == len([m for m in network.modules() if isinstance(m, nn.Linear)])
    assert unused is None or torch.equal(network.experts[-1].weight, unused)


def test_layers_of_timm_with_a_forward_of_their_own():
    layers = package("timm.layers")
    network = nn.Sequential(
        layers.ScaledStdConv2d(3, 4, 3, stride=4),
        nn.ReLU(),
        layers.StdConv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        layers.linear.Linear(4 * 7 * 7, 8),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    )
    module, losses = train(network, Classification(CLASSES), pairs())
    assert list(module.engine.local) == ["6", "8"] and losses[-1] < 0.5 * losses[0]
    assert notes(module) == {
        "0": "has parameters beside weight and bias (gain)",
        "2": "its output is not its matrix times its input",
    }


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrizations_are_left_to_the_rest(wrap):
    network = nn.Sequential(nn.Flatten(), wrap(nn.Linear(3 * 1024, 8)), nn.Tanh(), nn.Linear(8, CLASSES))
    module, losses = train(network, Classification(CLASSES), pairs())
    assert list(module.engine.local) == ["3"] and losses[-1] < 0.8 * losses[0]
    assert "made of other parameters" in notes(module)["1"]


def test_a_layer_without_a_shape_is_refused():
    with pytest.raises(UserError, match="'0' has no shape yet"):
        train(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, CLASSES)), Classification(CLASSES), pairs())
