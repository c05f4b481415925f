"""A forecast of a series: the steps that follow a window."""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.data.fingerprint import fingerprint
from lstm_jax.data.series import Series, load_series, split_series
from lstm_jax.errors import UserError
from lstm_jax.model_config import make_classifier
from lstm_jax.models import SequenceClassifier
from lstm_jax.pictures import draw_forecast, show_number
from lstm_jax.summary import summarize
from lstm_jax.tasks.classification import class_logits
from lstm_jax.tasks.task import Examples, Sums, Task

SCALING_FILE = "scaling.json"

_BATCH = 1024  # windows forecast at once, when training has ended
_DRAWN = 500  # steps of the picture: more would be too dense to tell apart


class Forecast(NamedTuple):
    """What was said of each window's next steps, in the units of the data."""

    truth: Float[np.ndarray, "N horizon"]
    forecast: Float[np.ndarray, "N horizon"]
    baseline: Float[np.ndarray, "N horizon"]


def regress(config: Config) -> Task:
    """The next `data.horizon` steps of a series, from `data.window` steps.

    The loss is the mean squared error of the standardised series. "mae" and "rmse" are
    in the units of the data, over all steps of the horizon; "baseline_mae" and
    "baseline_rmse" are those of saying the last value of the window again.

    Raises:
      UserError: the data or a field of the config is no use.
    """
    data = config.data
    if config.model.head != "softmax":
        raise UserError(
            f"model.head={config.model.head!r} is for classes: set model.head=softmax, "
            "whose outputs a forecast takes as they are"
        )
    numbers = load_series(data.path, data.column)
    series = split_series(numbers, data.window, data.horizon, data.holdout)
    model = make_classifier(config.model, data.horizon, vocab_size=None)
    train, *others = [
        {"inputs": part.inputs, "targets": part.targets}
        for part in series.parts.values()
    ]
    first = jnp.asarray(train["inputs"][:1])
    scaling = {"mean": series.mean, "deviation": series.deviation}
    return Task(
        init=lambda key: dict(model.init(key, first)["params"]),
        loss=_loss(model),
        examples=(train,),
        order=None,
        splits={
            name: (part,)
            for name, part in zip(list(series.parts)[1:], others, strict=True)
        },
        summary=summarize(model, first),
        files={
            "data.sha256": fingerprint(numbers) + "\n",
            SCALING_FILE: json.dumps(scaling, indent=2) + "\n",
        },
        finish=lambda means: in_units(means, series.deviation),
        demonstrate=_demonstration(model, series),
        pictures=_picture(model, series),
    )


def in_units(means: dict[str, float], deviation: float) -> dict[str, float]:
    """What is reported of the means: errors in the units of the data.

    A root is taken of a mean over all examples, for a mean of roots is another number.
    """
    return {
        "loss": means["loss"],
        "mae": deviation * means["mae"],
        "rmse": deviation * math.sqrt(means["loss"]),
        "baseline_mae": deviation * means["baseline_mae"],
        "baseline_rmse": deviation * math.sqrt(means["baseline_mse"]),
    }


def _loss(model: SequenceClassifier) -> Callable[..., tuple[Sums, PyTree]]:
    def loss(
        params: Params,
        examples: Examples,
        weight: Float[Array, " B"],
        key: PRNGKeyArray | None,
        carry: PyTree,
    ) -> tuple[Sums, PyTree]:
        targets = examples["targets"]
        errors = class_logits(model, params, examples, key) - targets
        baseline = examples["inputs"][:, -1] - targets

        def total(values: Float[Array, "B horizon"]) -> Float[Array, ""]:
            return jnp.sum(weight * jnp.mean(values, axis=1))

        sums = {
            "count": jnp.sum(weight),
            "loss": total(errors**2),
            "mae": total(jnp.abs(errors)),
            "baseline_mae": total(jnp.abs(baseline)),
            "baseline_mse": total(baseline**2),
        }
        return sums, carry

    return loss


def forecast(
    model: SequenceClassifier, params: Params, series: Series, part: str = "test"
) -> Forecast:
    """The forecasts of all windows of a part, in the units of the data."""
    apply = jax.jit(lambda params, batch: class_logits(model, params, batch))
    inputs, targets = series.parts[part]
    said = [
        np.asarray(apply(params, {"inputs": inputs[i : i + _BATCH]}))
        for i in range(0, len(inputs), _BATCH)
    ]
    same = np.broadcast_to(inputs[:, -1], targets.shape)
    return Forecast(
        *(
            series.mean + series.deviation * values.astype(np.float64)
            for values in (targets, np.concatenate(said), same)
        )
    )


def _demonstration(
    model: SequenceClassifier, series: Series
) -> Callable[[Params], str]:
    """The errors on the test part, beside the baseline's."""

    def demonstrate(params: Params) -> str:
        test = forecast(model, params, series)
        errors = []
        for said in (test.forecast, test.baseline):
            mae = np.abs(said - test.truth).mean()
            rmse = math.sqrt(((said - test.truth) ** 2).mean())
            errors.append(f"MAE {show_number(mae)}, RMSE {show_number(rmse)}")
        return f"test forecast: {errors[0]}; last value: {errors[1]}"

    return demonstrate


def _picture(
    model: SequenceClassifier, series: Series
) -> Callable[[Params], dict[str, bytes]]:
    """The first steps of the test part, each forecast `horizon` steps before."""

    def pictures(params: Params) -> dict[str, bytes]:
        test = forecast(model, params, series)
        horizon = test.truth.shape[1]
        truth, said, same = (values[:_DRAWN, -1] for values in test)
        title = f"forecast {horizon} step{'s' if horizon > 1 else ''} ahead"
        return {"forecast.png": draw_forecast(truth, said, same, horizon - 1, title)}

    return pictures
