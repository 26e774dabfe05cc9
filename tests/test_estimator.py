"""The estimator: scikit-learn's own checks, its tools, and the same numbers as the command line."""

import inspect
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from nfexp import RealNVP, fit_many
from nfexp.record import load_flow
from nfexp.spec import Flow, Train
from tests.helpers.specs import values_of

QUICK = {"n_flows": 2, "hidden_width": 8, "steps": 20, "n_evals": 3, "device": "cpu"}
X = np.random.default_rng(0).normal(size=(120, 3)) * [1, 2, 3] + 5


def quick(**keys):
    return RealNVP(**QUICK | {"random_state": 0} | keys)


@parametrize_with_checks([RealNVP(**QUICK | {"steps": 4})])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_every_parameter_is_a_key_with_its_default():
    values = values_of("flow", "classic") | values_of("train", "classic")
    parameters = RealNVP().get_params()
    own = {"validation_fraction", "n_members", "random_state", "device", "verbose"}
    assert parameters.keys() - own <= {
        *inspect.signature(Flow).parameters,
        *inspect.signature(Train).parameters,
    }
    for key in parameters.keys() - own:
        assert parameters[key] == values[key]


def test_the_same_weights_as_the_command_line(nfexp, small_args):
    rng = np.random.default_rng(1)
    train = rng.normal(size=(90, 3))
    pd.DataFrame(train, columns=list("abc")).to_csv("train.csv", index=False)
    pd.DataFrame(rng.normal(size=(20, 3)), columns=list("abc")).to_csv("test.csv", index=False)
    code, _, err = nfexp(
        "data=table", "data.path=train.csv", "data.test_path=test.csv", "train.steps=20", "train.batch_size=32",
        "train.n_evals=13", "flow.hidden_width=8", "device=cpu", "seed=7", "record=none", "hydra.run.dir=r",
    )  # fmt: skip
    assert code == 0, err
    flow = load_flow("r")
    model = RealNVP(steps=20, batch_size=32, n_evals=13, hidden_width=8, device="cpu", random_state=7).fit(train)
    np.testing.assert_array_equal(model.weights_, flow.stack.theta.numpy())
    np.testing.assert_array_equal(model.fixed_, flow.stack.fixed.numpy())
    np.testing.assert_allclose(model.score_samples(train), flow.log_prob(train).numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.sample(5, random_state=3), flow.sample(5, seed=3).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", ["equal", "val"])
def test_an_ensemble_has_the_weights_of_the_command_line(nfexp, weights):
    rng = np.random.default_rng(1)
    train = rng.normal(size=(90, 3))
    pd.DataFrame(train, columns=list("abc")).to_csv("train.csv", index=False)
    code, _, err = nfexp(
        "data=table", "data.path=train.csv", "data.test_path=train.csv", "train.steps=9", "train.batch_size=32",
        "flow.hidden_width=8", "flow.members=3", "device=cpu", "seed=7", "record=none", "hydra.run.dir=r",
        f"flow.weights={weights}",
    )  # fmt: skip
    assert code == 0, err
    flow = load_flow("r")
    model = RealNVP(steps=9, batch_size=32, hidden_width=8, device="cpu", n_members=3, weights=weights, random_state=7)
    model.fit(train)
    np.testing.assert_array_equal(model.weights_, flow.stack.theta.numpy())
    np.testing.assert_allclose(model.member_weights_, flow.weights, atol=1e-4)
    assert (len(set(model.member_weights_)) == 1) == (weights == "equal")
    np.testing.assert_allclose(model.score_samples(train), flow.log_prob(train).numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.sample(9, random_state=3), flow.sample(9, seed=3).numpy(), rtol=1e-4, atol=1e-4)


def test_a_gaussian_up_to_its_entropy():
    rng = np.random.default_rng(2)
    fresh = rng.normal(size=(2000, 3)) * [1, 2, 3] + 5
    model = RealNVP(n_flows=2, hidden_width=16, steps=200, random_state=0, device="cpu")
    model.fit(rng.normal(size=(2000, 3)) * [1, 2, 3] + 5)
    exact = -0.5 * (((fresh - 5) / [1, 2, 3]) ** 2).sum(1) - np.log([1, 2, 3]).sum() - 1.5 * np.log(2 * np.pi)
    assert -0.02 < exact.mean() - model.score(fresh) < 0.08
    assert abs(model.sample(4000, random_state=0).std(0) / [1, 2, 3] - 1).max() < 0.1


@pytest.mark.parametrize("members", [1, 3])
def test_one_column_integrates_to_one(members):
    model = quick(n_members=members).fit(X[:, :1])
    line = np.linspace(-40, 50, 20_001)
    assert abs(np.exp(model.score_samples(line[:, None])).sum() * (line[1] - line[0]) - 1) < 1e-6


def test_an_ensemble_is_the_mean_of_its_members():
    model = quick(n_members=3).fit(X)
    members = [quick(n_members=3).set_params().fit(X) for _ in range(3)]
    densities = []
    for e, member in enumerate(members):
        member.weights_, member.fixed_ = model.weights_[e : e + 1], model.fixed_[e : e + 1]
        densities.append(np.exp(member.score_samples(X)))
    np.testing.assert_allclose(np.exp(model.score_samples(X)), np.mean(densities, 0))
    assert not np.array_equal(model.weights_[0], model.weights_[1])
    np.testing.assert_array_equal(model.weights_[:1], quick().fit(X).weights_)
    assert model.sample(50, random_state=0).shape == (50, 3)


def test_many_at_once_are_as_alone():
    asked = [
        quick(lr=0.001),
        quick(lr=0.01),
        quick(n_flows=3),
        quick(n_members=2),
        {**QUICK, "random_state": 5},
    ]
    together = fit_many(asked, X)
    for one, model in zip(asked, together, strict=True):
        alone = (RealNVP(**one) if isinstance(one, dict) else one).fit(X)
        np.testing.assert_array_equal(model.weights_, alone.weights_)


def test_pipeline_search_and_validation():
    search = GridSearchCV(make_pipeline(StandardScaler(), quick()), {"realnvp__n_flows": [1, 2]}, cv=2).fit(X)
    assert search.best_params_["realnvp__n_flows"] in (1, 2)
    assert np.isfinite(cross_val_score(quick(), X, cv=2)).all()


def test_halving():
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV

    search = HalvingGridSearchCV(
        quick(warmup="up_to_5"),
        {"lr": [0.001, 0.01, 0.1]},
        resource="steps",
        min_resources=3,
        max_resources=9,
        cv=2,
    )
    assert search.fit(X).best_estimator_.steps == 9


def test_names_of_columns():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = quick().fit(frame)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names should match"):
        model.score_samples(frame.rename(columns={"a": "z"}))


def test_pickle_and_joblib(tmp_path):
    model = quick(n_members=2).fit(X)
    joblib.dump(model, tmp_path / "model.joblib")
    for copy in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(copy.score_samples(X), model.score_samples(X))
    assert not any(isinstance(value, torch.Tensor) for value in vars(model).values())


def test_random_state():
    same = [quick(random_state=4).fit(X).weights_ for _ in range(2)]
    np.testing.assert_array_equal(*same)
    fresh = [RealNVP(**QUICK).fit(X).weights_ for _ in range(2)]
    assert not np.array_equal(*fresh)
    assert quick(random_state=np.random.RandomState(0)).fit(X).weights_.shape == same[0].shape


def test_memory_of_many_rows_is_bounded(monkeypatch):
    from nfexp.flows.stack import FlowStack

    sizes = []
    whole = FlowStack.log_prob
    monkeypatch.setattr(
        FlowStack,
        "log_prob",
        lambda self, x, *given: (sizes.append(x.shape[1]), whole(self, x, *given))[1],
    )
    model = quick().fit(X)
    sizes.clear()
    assert model.score_samples(np.tile(X, (100, 1))).shape == (12_000,)
    assert max(sizes) <= 4096


def test_progress(capsys):
    quick(verbose=1).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1].startswith("step 20 of 20: NLL ")


def test_divergence_is_a_warning():
    with pytest.warns(ConvergenceWarning, match=r"member 0 diverged at step \d+"):
        quick(scale="exp", lr=900.0, grad_clip=None, init="random").fit(X)


BAD = {
    "weights": ({}, {"sample_weight": np.ones(len(X))}, TypeError, "fit: .* no sample_weight; resample rows"),
    "a word": ({"activation": "gelu"}, {}, ValueError, "^activation: expected one of relu, .*; got 'gelu'"),
    "no flows": ({"n_flows": 0}, {}, ValueError, "^n_flows: expected an integer >= 1 .*; got 0"),
    "all validated": ({"validation_fraction": 1.0}, {}, ValueError, "^validation_fraction: expected .*; got 1.0"),
    "weights of no sort": ({"weights": "best"}, {}, ValueError, "^weights: expected one of equal, val; got 'best'"),
    "no members": ({"n_members": 0}, {}, ValueError, "^n_members: expected an integer >= 1; got 0"),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "given", "error", "message"), BAD.values(), ids=BAD)
def test_bad_parameters(keys, given, error, message):
    with pytest.raises(error, match=message):
        quick(**keys).fit(X, **given)


ROWS = {
    "missing": (np.where(X > 9, np.nan, X), "Input X contains NaN"),
    "infinite": (np.where(X > 9, np.inf, X), "Input X contains infinity"),
    "three": (X[:3], "minimum of 4 is required"),
    "one dimension": (X[:, 0], "Expected 2D array"),
    "a constant": (
        np.c_[X, np.ones(len(X))],
        "X: expected columns that vary .*; got a constant one, 3",
    ),
    "words": (np.array([["a", "b"]] * 9), "could not convert string to float"),
}


@pytest.mark.parametrize(("rows", "message"), ROWS.values(), ids=ROWS)
def test_bad_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(rows)


LINEAR = np.array([[2.0, 0.5, -1.0]])  # x | c ~ N(c · LINEAR, 0.25), three columns given one


def conditional(n, seed=0):
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(n, 1)) * 3 + 7
    return c @ LINEAR + 0.5 * rng.normal(size=(n, 3)), c


def test_given_a_context():
    x, c = conditional(2000)
    model = RealNVP(n_flows=3, hidden_width=16, steps=300, lr=0.005, random_state=0, device="cpu").fit(x, context=c)
    fresh, of_fresh = conditional(2000, seed=1)
    entropy = 1.5 * np.log(2 * np.pi * np.e * 0.25)
    assert -0.05 < -entropy - model.score(fresh, context=of_fresh) < 0.1
    np.testing.assert_allclose(
        model.score(fresh, context=of_fresh), model.score_samples(fresh, context=of_fresh).mean()
    )
    draws = model.sample(2000, random_state=0, context=[[4.0]])
    assert abs(draws.mean(0) - 4.0 * LINEAR[0]).max() < 0.15 and abs(draws.std(0) - 0.5).max() < 0.1
    assert model.sample(context=c[:7], random_state=0).shape == (7, 3)
    assert model.sample(1, context=[[4.0]], random_state=0).shape == (1, 3)


def test_a_context_has_the_weights_of_the_command_line(nfexp):
    x, c = conditional(90)
    frame = pd.DataFrame(np.c_[c, x], columns=list("cxyz"))
    frame.to_csv("train.csv", index=False)
    code, _, err = nfexp(
        "data=table", "data.path=train.csv", "data.test_path=train.csv", "data.context=[c]", "train.steps=9",
        "train.batch_size=32", "flow.hidden_width=8", "device=cpu", "seed=7", "record=none", "hydra.run.dir=r",
    )  # fmt: skip
    assert code == 0, err
    flow = load_flow("r")
    keys = {"steps": 9, "batch_size": 32, "hidden_width": 8, "device": "cpu", "random_state": 7}
    (model,) = fit_many([keys], x, context=c)
    np.testing.assert_array_equal(model.weights_, flow.stack.theta.numpy())
    np.testing.assert_array_equal(model.fixed_, flow.stack.fixed.numpy())
    again = pickle.loads(pickle.dumps(model))
    ours = again.score_samples(x, context=c)
    np.testing.assert_allclose(ours, flow.log_prob(x, c).numpy(), rtol=1e-4, atol=1e-4)
    drawn = model.sample(5, random_state=3, context=c[:5])
    np.testing.assert_allclose(drawn, flow.sample(5, c[:5], seed=3).numpy(), rtol=1e-4, atol=1e-4)


def test_a_context_goes_through_scikit_learns_tools():
    x, c = conditional(120)
    with sklearn.config_context(enable_metadata_routing=True):
        model = quick().set_fit_request(context=True).set_score_request(context=True)
        assert np.isfinite(cross_val_score(model, x, cv=2, params={"context": c})).all()
        search = GridSearchCV(model, {"n_flows": [1, 2]}, cv=2).fit(x, context=c)
        assert search.best_params_["n_flows"] in (1, 2)
        piped = make_pipeline(StandardScaler(), model).fit(x, context=c)
        assert piped[-1].spec_.data.context_dim == 1
        of_scaled = piped[-1].score(piped[0].transform(x), context=c)
        assert piped.score(x, context=c) == of_scaled


def test_a_search_that_loses_the_context_says_how_to_keep_it():
    x, c = conditional(120)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        search = GridSearchCV(quick(), {"n_flows": [1]}, cv=2).fit(x, context=c)
    assert np.isnan(search.best_score_)
    assert any("set_fit_request(context=True).set_score_request(context=True)" in str(one.message) for one in told)
    with pytest.raises(ValueError, match=r"context: expected one, as in fit\(X, context=…\); got none: a search"):
        GridSearchCV(quick(), {"n_flows": [1]}, cv=2, error_score="raise").fit(x, context=c)


def test_a_score_takes_weights():
    model = quick().fit(X)
    of_first = model.score_samples(X[:2]) @ [3, 1] / 4
    assert model.score(X[:2], sample_weight=[3, 1]) == pytest.approx(of_first)
    with pytest.raises(ValueError, match="sample_weight"):
        model.score(X[:2], sample_weight=[1, 2, 3])


def test_a_context_of_pandas_has_names():
    x, c = conditional(120)
    frame = pd.DataFrame({"a": c[:, 0], "b": x[:, 0]})
    model = quick().fit(x[:, 1:], context=frame)
    with pytest.raises(ValueError, match="context: expected the columns a, b, as in fit; got b, a"):
        model.score(x[:, 1:], context=frame[["b", "a"]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pandas gives arrays that cannot be written, which torch warns of
        of_frame = model.score(x[:, 1:], context=frame)
    assert of_frame == model.score(x[:, 1:], context=frame.to_numpy())
    assert model.fit(x, context=c).context_names_in_ is None


GIVEN = {
    "too few": (lambda x, c: quick().fit(x, context=c[:9]), "context: expected 120 rows, one for each of X; got 9"),
    "a column": (lambda x, c: quick().fit(x, context=c[:, 0]), "Expected 2D array, got 1D array"),
    "missing": (lambda x, c: quick().fit(x, context=c * np.nan), "Input context contains NaN"),
    "constant": (lambda x, c: quick().fit(x, context=0 * c), "context: expected columns that vary .*; got .* one, 0"),
    "units": (
        lambda x, c: quick().fit(x, context=c * 1e-30),
        "context: expected columns that float32 holds: .* column 0",
    ),
    "offset": (
        lambda x, c: quick().fit(x, context=c + 1e9),
        "context: expected columns that float32 holds: .* column 0",
    ),
    "forgotten": (lambda x, c: quick().fit(x, context=c).score(x), "context: expected one, as in fit.*; got none"),
    "superfluous": (lambda x, c: quick().fit(x).score(x, context=c), "context: expected no context.*; got one"),
    "width": (
        lambda x, c: quick().fit(x, context=c).score_samples(x, context=x),
        r"context: expected shape \(120, 1\); got \(120, 3\)",
    ),
    "draws": (
        lambda x, c: quick().fit(x, context=c).sample(3, context=c[:2]),
        r"context: expected shape \(3, 1\); got \(2, 1\)",
    ),
    "part of a draw": (
        lambda x, c: quick().fit(x, context=c).sample(2.5, context=c[:1]),
        "n_samples: expected an integer >= 1; got 2.5",
    ),
}


@pytest.mark.parametrize(("ask", "message"), GIVEN.values(), ids=GIVEN)
def test_bad_contexts(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(*conditional(120))


def test_not_fitted():
    with pytest.raises(NotFittedError):
        quick().score_samples(X)


# --- A trained run as a distribution -------------------------------------------------------------------------------


def test_a_distribution_of_pytorch(nfexp, small_args):
    assert nfexp(*small_args, "record=none", "hydra.run.dir=r")[0] == 0
    flow = load_flow("r")
    assert repr(flow).startswith("TrainedFlow(moons, D = 2, 6 affine couplings, test NLL ")
    law = flow.distribution()
    x = law.sample((4, 5))
    assert (law.event_shape, x.shape) == ((2,), (4, 5, 2))
    torch.testing.assert_close(law.log_prob(x), flow.log_prob(x.reshape(-1, 2)).reshape(4, 5))
    torch.manual_seed(0)
    one = law.sample((3,))
    torch.manual_seed(0)
    torch.testing.assert_close(law.sample((3,)), one)
    law.weights.requires_grad_()
    law.rsample((6,)).square().sum().backward()
    assert law.weights.grad.abs().sum() > 0 and not flow.stack.theta.requires_grad


def test_the_gradient_of_a_draw_is_that_of_finite_differences():
    from nfexp.flows.distribution import FlowDistribution

    model = quick().fit(X)
    law = FlowDistribution(model._stack())

    def mean_square(theta):
        torch.manual_seed(0)
        return FlowDistribution(law.stack.with_rows(theta, law.stack.fixed)).rsample((50,)).square().mean()

    theta = law.weights.clone().requires_grad_()
    mean_square(theta).backward()
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-6
    difference = (mean_square(theta + step * direction) - mean_square(theta - step * direction)) / (2 * step)
    torch.testing.assert_close((theta.grad * direction).sum(), difference.detach(), rtol=1e-4, atol=1e-6)
