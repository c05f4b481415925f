"""The pictures of gradient flow show the numbers that they are given."""

from typing import Any

import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from lstm_jax.flow import Flow, Saturation
from lstm_jax.flow_pictures import draw_flow, draw_lag_gains


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures drawn in a test."""
    drawn: list[Any] = []
    savefig = matplotlib.figure.Figure.savefig

    def keep(figure: Any, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return drawn


def flow_of(seed: int, gradients: bool = True) -> Flow:
    rng = np.random.default_rng(seed)
    gains = jnp.asarray(np.exp(-rng.uniform(0, 1, 20)).cumprod(), jnp.float32)
    low, high = rng.uniform(0, 0.5, 2)
    return Flow(
        {"h": gains.at[-1].set(0.0).at[-3].set(jnp.nan)},
        jnp.asarray(rng.uniform(0.1, 1, 20), jnp.float32) if gradients else None,
        {"f": Saturation(jnp.float32(low), jnp.float32(high))},
        {"c": jnp.asarray([3.0, 0.0, jnp.inf, 20.0, 5.0], jnp.float32)},
    )


def test_flow_in_numbers(figures: list[Any]) -> None:
    flows = {"a_$new": flow_of(0), "lstm": flow_of(1)}
    assert draw_flow(flows, "1 $run").startswith(b"\x89PNG")
    gains, gradients, taus, shares = figures[0].axes
    for axes, field in ((gains, "lag_gains"), (gradients, "loss_gradients")):
        assert axes.get_yscale() == "log"
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        for name, flow in flows.items():
            values = getattr(flow, field)
            values = np.asarray(values["h"] if field == "lag_gains" else values)
            shown = np.isfinite(values) & (values > 0)
            np.testing.assert_array_equal(lines[name][shown], values[shown])
            # What is zero is below all else, and nothing is where nothing is known.
            assert axes.get_ylim()[0] < values[shown].min()
            np.testing.assert_array_equal(np.isnan(lines[name]), np.isnan(values))
            assert axes.get_ylim()[1] > np.nanmax(values)
    (first, _) = taus.lines
    assert first.get_label() == "a_$new, median 5"
    np.testing.assert_allclose(first.get_ydata(), [0.5, 3, 5, 20, 40])
    widths = [bar.get_width() for bar in shares.patches]
    ends = [flow.saturation["f"] for flow in flows.values()]
    want = [-float(a.low) for a in ends] + [float(a.high) for a in ends]
    np.testing.assert_allclose(widths, want)
    ticks = [label.get_text() for label in shares.get_yticklabels()]
    assert ticks == ["a_$new f", "lstm f"]


def test_without_a_loss_there_is_no_panel_of_it(figures: list[Any]) -> None:
    draw_flow({"a": flow_of(0, gradients=False)})
    titles = [axes.get_title() for axes in figures[0].axes]
    assert len(titles) == 3
    assert not any("loss" in title for title in titles)


def test_gains_by_panel(figures: list[Any]) -> None:
    exploding = np.exp(np.arange(40.0))
    one, both = {"h": exploding}, {"c": 1 / exploding, "h": exploding}
    draw_lag_gains({"before": {"b": one, "a": both}, "after": {"a": both}}, "t")
    before, after = figures[0].axes
    assert [axes.get_title() for axes in (before, after)] == ["before", "after"]
    assert before.get_ylim() == after.get_ylim()
    assert before.get_ylim() == (1e-10, 1e8)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [
        *("b", "a", "a, c")
    ]
    h, c = (line for line in before.lines if str(line.get_label()).startswith("a"))
    assert h.get_color() == c.get_color()
    assert (h.get_linestyle(), c.get_linestyle()) == ("-", "--")
    lines = {line.get_label(): line.get_ydata() for line in before.lines}
    np.testing.assert_array_equal(lines["a"], exploding)
    np.testing.assert_array_equal(lines["a, c"][:20], 1 / exploding[:20])
