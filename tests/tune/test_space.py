import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from locoprop_lightning import UserError
from locoprop_lightning.tune.space import Space

SPACE = """
a: {loguniform: [1, 1e6]}
b: {uniform: [0, 1], step: 0.25}
c: {integers: [2, 8], step: 3}
d: {integers: [1, 100], log: true}
e: {choice: [x, y, 3, true]}
f: {uniform: [5, 6], when: {e: [x, 3]}}
g: {choice: [p, q], when: {f: 5.5, e: x}}
"""


def load(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return Space.load(path)


@pytest.fixture
def space(tmp_path):
    return load(tmp_path, SPACE)


def test_kinds(space):
    distributions = {key: dimension.distribution for key, dimension in space.dimensions.items()}
    assert distributions == {
        "a": FloatDistribution(1, 1e6, log=True),
        "b": FloatDistribution(0, 1, step=0.25),
        "c": IntDistribution(2, 8, step=3),
        "d": IntDistribution(1, 100, log=True),
        "e": CategoricalDistribution(["x", "y", 3, True]),
        "f": FloatDistribution(5, 6),
        "g": CategoricalDistribution(["p", "q"]),
    }


def test_conditions_hold_in_every_trial(space):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        space(trial)
        values = trial.params
        assert ("f" in values) == (values["e"] in ("x", 3)) and "g" not in values  # f is never 5.5 to the last digit
        assert 1 <= values["a"] <= 1e6 and values["b"] in (0, 0.25, 0.5, 0.75, 1) and values["c"] in (2, 5, 8)
        seen.add(values["e"])
        study.tell(trial, 0.0)
    assert seen == {"x", "y", 3, True}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("a", 1.1, True),
        ("a", 2.0, False),
        ("a", 9e5, True),
        ("b", 0.5, False),
        ("b", 1, True),
        ("d", 99, True),
        ("e", "x", False),
    ],
)
def test_ends_of_a_range(space, key, value, expected):
    assert space.at_end(key, value) is expected


def test_corners_meet_the_conditions(space):
    corners = space.corners()
    assert {"a": 1.0} in corners and {"a": 1e6} in corners and {"c": 8} in corners
    assert [corner for corner in corners if "f" in corner and "g" not in corner] == [
        {"e": "x", "f": 5},
        {"e": "x", "f": 6},
    ]
    assert {"e": "x", "f": 5.5, "g": "q"} in corners


def test_start(space):
    settings = {"a": 10.0, "b": 2.0, "c": 5, "e": "package.y", "f": 5.5, "z": 1}
    assert space.start(settings) == {"a": 10.0, "c": 5, "e": "y"}  # b lies outside, f is not searched where e is y


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no settings"),
        ("a: [", "is no YAML"),
        ("a: 3", "space: a: must be one of uniform, loguniform, integers, choice with its values"),
        ("a: {}", "must have exactly one of"),
        ("a: {uniform: [0, 1], choice: [1]}", "must have exactly one of"),
        ("a: {uniform: [1, 0]}", "uniform must be two numbers, the lower one first, not {'uniform': [1, 0]}"),
        ("a: {uniform: [0, x]}", "uniform must be two numbers"),
        ("a: {uniform: [0, .inf]}", "uniform must be two numbers"),
        ("a: {loguniform: [0, 1]}", "loguniform must begin above 0"),
        ("a: {loguniform: [1, 2], step: 1}", "step must be above 0, and is for uniform and integers"),
        ("a: {integers: [1, 2.5]}", "integers must be whole numbers"),
        ("a: {integers: [0, 5], log: true}", "integers with log must begin at 1 or above"),
        ("a: {uniform: [0, 1], log: true}", "log is for integers; take loguniform"),
        ("a: {choice: []}", "choice must be a list"),
        ("a: {choice: [[1]]}", "choice must be a list"),
        ("a: {uniform: [0, 1], stp: 1}", "stp is none of"),
        ("a: {uniform: [0, 1], when: {b: 1}}\nb: {choice: [1]}", "when names b, which is no searched setting"),
        ("a: {choice: [1]}\nb: {choice: [2], when: {a: 2}}", "when asks for a=2, which is none of its choices 1"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(UserError) as refused:
        load(tmp_path, text)
    assert message in str(refused.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="there is no such file, and none is shipped"):
        Space.load(tmp_path / "none.yaml")


def test_a_start_is_on_the_grid(tmp_path):
    space = load(
        tmp_path, "x: {uniform: [1, 99], step: 7}\nn: {integers: [2, 8], step: 3}\nc: {choice: [1e-1, 1e1, 1e1a]}"
    )
    assert space.dimensions["c"].distribution.choices == (0.1, 10.0, "1e1a")
    assert space.start({"x": 30, "n": 4, "c": 10}) == {"c": 10}
    assert space.start({"x": 29.0, "n": 5, "c": 0.2}) == {"x": 29.0, "n": 5}


def test_a_key_stands_once(tmp_path):
    with pytest.raises(UserError, match="a: stands there twice"):
        load(tmp_path, "a: {uniform: [0, 1]}\nb: {uniform: [0, 1]}\na: {uniform: [0, 2]}")
