"""Pictures of an evaluation, as SVG. matplotlib is not needed for anything else, so it is asked for only here."""

from __future__ import annotations

from pathlib import Path

from quantize.errors import QuantizeError
from quantize.evaluate.evaluation import Evaluation


def check_plots() -> None:
    """Raises QuantizeError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise QuantizeError("The plots need matplotlib: pip install matplotlib, or leave out --plots.") from None
    matplotlib.use("svg")


def draw(evaluation: Evaluation, folder: Path) -> list[str]:
    """Writes the pictures into `folder` and returns their names. Raises QuantizeError without matplotlib."""
    check_plots()
    import matplotlib
    from matplotlib import pyplot

    # The same evaluation gives the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "configi"
    kinds = list(evaluation.kinds)
    bars, axes = pyplot.subplots(figsize=(7, 0.5 * len(kinds) + 1.5), layout="constrained")
    values = [evaluation.kinds[kind].kl for kind in kinds]
    spread = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
    colours = ["C0" if kind in evaluation.protocol.covered else "C1" for kind in kinds]
    axes.barh(kinds, [v.value for v in values], xerr=[[max(0, x) for x in side] for side in spread], color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("KL divergence from the reference, nats a token (orange: uncovered kinds)")
    tails, axes_of_tails = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for group, histogram in evaluation.histogram.items():
        axes_of_tails.stairs(histogram.shares, histogram.edges, label=group, baseline=None)
    axes_of_tails.set(xscale="log", xlabel="KL divergence of a token, nats", ylabel="share of the tokens")
    axes_of_tails.legend()
    names = []
    for name, figure in (("kl-by-kind.svg", bars), ("kl-of-tokens.svg", tails)):
        figure.savefig(folder / name, metadata={"Date": None})
        pyplot.close(figure)
        names.append(name)
    return names
