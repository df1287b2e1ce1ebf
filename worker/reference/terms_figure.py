"""The figure that explains the terms of pruning: one prompt under ToProVAR's rule, scale by scale.

`python -m toprovar_batch.worker.reference.terms_figure docs/images/terms.png` draws it from a run of the small model.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import torch
from PIL import Image
from torch import Tensor

from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.pruning.plan import ScalePlan
from toprovar_batch.worker.pruning.policies.base import BatchContext, PruningPolicy
from toprovar_batch.worker.pruning.policies.build import policy_factory
from toprovar_batch.worker.pruning.policies.fit import representative_scale
from toprovar_batch.worker.pruning.policies.specs import ToprovarSpec
from toprovar_batch.worker.pruning.policies.toprovar import round_entropy
from toprovar_batch.worker.pruning.statistics import low_entropy_ratio
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, RuntimeSpec
from toprovar_batch.worker.whole_file import whole_file
from toprovar_batch.worker.words import counted

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROMPT: Final = "a red cube left of a blue sphere"
POLICY: Final = ToprovarSpec(conditional_from=8)
_COND, _UNCOND, _MARK = "#1f5fa8", "#e08a2e", "#b3123f"
_DPI: Final = 110


@dataclass
class ScaleRecord:
    """What one scale of the prompt did.

    Attributes:
        size: (h, w) of the token map.
        pixels: [H, W, 3] uint8, the sum of codes after the scale as the VAE decodes it.
        entropy: [h, w] nats, mean over the layers; None once the prompt is pruned.
        rho: of that map; NaN where all tokens are equal, and once the prompt is pruned.
        layers_run: [h, w] layers that each token ran.
        shares: [L] fraction of the tokens that each layer ran.
        branches: guidance branches that ran.
        keep_ratio: token-layers that ran, of dense's.
    """

    size: tuple[int, int]
    pixels: "np.ndarray[Any, np.dtype[np.uint8]]"
    entropy: Tensor | None
    rho: float
    layers_run: Tensor
    shares: tuple[float, ...]
    branches: int
    keep_ratio: float


@dataclass
class _Watching:
    """Passes all of a policy on, and keeps the plans, the entropy maps and the sums of codes of one prompt.

    The policy itself sees what it asked for and nothing else, so it decides as it would unwatched.
    """

    policy: PruningPolicy
    plans: list[ScalePlan] = field(default_factory=list)
    entropy: dict[int, list[Tensor]] = field(default_factory=dict)
    codes: list[Tensor] = field(default_factory=list)

    def plan(self, scale_index: int) -> ScalePlan:
        """The policy's plan. Entropy is observed as well while all tokens run, and the codes always."""
        plan = self.policy.plan(scale_index)
        assert not plan.observe_codes  # else the policy would have to be shown them
        self.plans.append(plan)
        whole = all(tokens is None for tokens in plan.layers)
        return replace(plan, entropy_of=plan.prompts if whole else (), observe_codes=True)

    def observe(self, scale_index: int, layer: int, attn_entropy: Tensor) -> None:
        """Keep a layer's map, and pass it on where the policy asked for it."""
        self.entropy.setdefault(scale_index, []).append(attn_entropy[0].float().cpu())
        if self.plans[-1].entropy_of:
            self.policy.observe(scale_index, layer, attn_entropy)

    def observe_scale(
        self,
        scale_index: int,  # noqa: ARG002 - in order
        logits: Tensor | None,  # noqa: ARG002 - not asked for
        summed_codes: Tensor | None,
        prompts: Sequence[int],  # noqa: ARG002 - the only one
    ) -> None:
        """Keep the sum of codes."""
        assert summed_codes is not None
        self.codes.append(summed_codes.clone())

    def measured(self, prompt: int, statistics: ImageStatistics) -> ImageStatistics:
        """As the policy says."""
        return self.policy.measured(prompt, statistics)


def record_scales(generator: Generator, prompt: str = PROMPT, seed: int = 0) -> list[ScaleRecord]:
    """Run one prompt under the generator's policy and say what each scale did.

    Args:
        generator: set up, with a policy that observes nothing but entropy and skips no scale.
        prompt: what to draw.
        seed: of the image.
    """
    spec = generator.spec
    make = policy_factory(spec.policy, spec.num_scales, spec.model.transformer.depth)
    watching: list[_Watching] = []

    def watch(context: BatchContext) -> PruningPolicy:
        watching.append(_Watching(make(context)))
        return watching[0]

    runner = generator.observe([GenerationRequest("terms", prompt, None, seed)], watch)
    watched, work = watching[0], runner.history.work(0)
    found = []
    for scale, ((height, width), plan) in enumerate(zip(runner.schedule, watched.plans, strict=True)):
        maps = watched.entropy.get(scale)
        entropy = None if maps is None else round_entropy(torch.stack(maps)).mean(0)
        with torch.inference_mode():
            runner.codes.summed_codes.copy_(watched.codes[scale])
        found.append(
            ScaleRecord(
                size=(height, width),
                pixels=generator.decode(runner)[0],
                entropy=None if entropy is None else entropy.view(height, width),
                rho=float("nan") if entropy is None else float(low_entropy_ratio(entropy)),
                layers_run=_layers_run(plan).view(height, width),
                shares=tuple(count / (height * width) for count in work.counts[scale]),
                branches=work.branches[scale],
                keep_ratio=work.keep_ratio[scale],
            )
        )
    return found


def _layers_run(plan: ScalePlan) -> Tensor:
    """[N] int64: in how many layers each token of the prompt runs."""
    whole = torch.ones(plan.num_tokens, dtype=torch.int64)
    return sum(
        (
            whole if tokens is None or tokens.mask is None else tokens.mask[0].cpu().long()
            for tokens in plan.layers
        ),
        torch.zeros_like(whole),
    )


def terms_figure(scales: Sequence[ScaleRecord], spec: ToprovarSpec = POLICY) -> "Figure":
    """Draw a column a scale: the picture so far, the entropy of its tokens, who ran in each layer, and where.

    Args:
        scales: of `record_scales`.
        spec: the policy they ran under.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - only figures need it

    figure = Figure(figsize=(12.4, 5.9))
    grid = figure.add_gridspec(
        4, len(scales), left=0.085, right=0.995, top=0.865, bottom=0.075, wspace=0.12, hspace=0.42
    )
    depth = len(scales[0].shares)
    representative = representative_scale(spec, len(scales))
    for index, scale in enumerate(scales):
        picture, entropy, layers, tokens = (figure.add_subplot(grid[row, index]) for row in range(4))
        _picture(picture, index, scale)
        _entropy(entropy, scale, looked_at=index >= representative)
        _layers(layers, scale)
        tokens.imshow(scale.layers_run.numpy(), vmin=0, vmax=depth, cmap="Blues", interpolation="nearest")
        tokens.set_xlabel(counted(scale.size[0] * scale.size[1], "token"), fontsize=8)
        for axes in (picture, entropy, layers, tokens):
            axes.set(xticks=[], yticks=[])
            if index == representative:
                for spine in axes.spines.values():
                    spine.set(color=_MARK, linewidth=2)
    _name_rows(figure, depth)
    _name_scales(figure, scales, representative, spec)
    return figure


def _picture(axes: "Axes", index: int, scale: ScaleRecord) -> None:
    axes.imshow(scale.pixels[::4, ::4])
    axes.set_title(f"scale {index}\n{scale.size[0]} x {scale.size[1]}", fontsize=8.5, pad=3)


def _entropy(axes: "Axes", scale: ScaleRecord, *, looked_at: bool) -> None:
    """The entropy map, bright where it is high, over its rho; grey where the rule does not look at it yet."""
    if scale.entropy is None:
        axes.set_facecolor("#f2f2f2")
        axes.text(0.5, 0.5, "not\nmeasured", ha="center", va="center", fontsize=8, transform=axes.transAxes)
        axes.set_box_aspect(1)
        return
    axes.imshow(scale.entropy.numpy(), cmap="magma", interpolation="nearest")
    colour = _MARK if looked_at else "#777777"
    axes.set_xlabel(
        "rho: none" if math.isnan(scale.rho) else f"rho {scale.rho:.2f}", fontsize=8, color=colour
    )


def _layers(axes: "Axes", scale: ScaleRecord) -> None:
    """A bar a layer: to the right the tokens of the conditional branch, to the left those of the unconditional one."""
    rows = range(len(scale.shares))
    axes.barh(rows, scale.shares, color=_COND, height=0.8)
    if scale.branches > 1:
        axes.barh(rows, [-share for share in scale.shares], color=_UNCOND, height=0.8)
    else:  # there is room to name the two kinds of layers
        of_kind = [[row for row in rows if (scale.shares[row] == 1) is whole] for whole in (True, False)]
        for kind, found in zip(("Global", "Detail"), of_kind, strict=True):
            if found:
                axes.text(
                    -0.52, sum(found) / len(found), kind, fontsize=7, ha="center", va="center", color=_COND
                )
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set(xlim=(-1.02, 1.02), ylim=(len(rows) - 0.4, -0.6))
    axes.set_box_aspect(1)
    axes.set_xlabel(f"{scale.keep_ratio:.0%} run", fontsize=8)


def _name_rows(figure: "Figure", depth: int) -> None:
    names = (
        "the picture\nso far",
        "entropy of the\nattention of\neach token\n(bright: high)",
        f"token-layers: a\nbar for each of {depth}\nlayers, with the\ntokens that run",
        "where: layers\nthat each token\nruns (dark: all)",
    )
    for name, height in zip(names, (0.785, 0.565, 0.345, 0.135), strict=True):
        figure.text(0.004, height, name, fontsize=8.5, va="center")
    figure.text(0.004, 0.262, "left: unconditional", fontsize=7.5, color=_UNCOND)
    figure.text(0.004, 0.239, "right: conditional", fontsize=7.5, color=_COND)


def _name_scales(
    figure: "Figure", scales: Sequence[ScaleRecord], representative: int, spec: ToprovarSpec
) -> None:
    """Braces above the columns: where the rule looks, what it finds, and what follows."""

    def middle(first: float, last: float) -> float:
        return 0.085 + (first + last + 1) / 2 * 0.91 / len(scales)

    def above(first: int, last: int, text: str, colour: str) -> None:
        figure.text(middle(first, last), 0.945, text, ha="center", va="bottom", fontsize=8.5, color=colour)
        left, right = middle(first - 0.46, first - 0.46), middle(last + 0.46, last + 0.46)
        figure.add_artist(_line([left, right], [0.937, 0.937], colour))

    start = next(index for index, scale in enumerate(scales) if scale.keep_ratio < 1)
    unguided = next((index for index, scale in enumerate(scales) if scale.branches == 1), len(scales))
    above(0, representative - 1, "every token runs in every layer, in both guidance branches", "black")
    sign = (
        "\N{LESS-THAN OR EQUAL TO}"
        if spec.threshold_direction == "at_most"
        else "\N{GREATER-THAN OR EQUAL TO}"
    )
    above(representative, start - 1, f"representative scale\nrho {sign} {spec.depth_threshold}: prune", _MARK)
    above(start, unguided - 1, "pruned", _COND)
    if unguided < len(scales):
        above(unguided, len(scales) - 1, "pruned, guidance left out", _COND)


def _line(x: Sequence[float], y: Sequence[float], colour: str) -> Any:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - only figures need it

    return Line2D(x, y, color=colour, linewidth=1.2)


def write_png(figure: "Figure", output: Path) -> None:
    """Write a figure with 256 colours, which is half as large; the same figure gives the same file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    output.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(drawn) as image, whole_file(output) as path:
        image.convert("RGB").quantize(256).save(path, format="png", optimize=True)


@click.command()
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
def terms_command(output: Path) -> None:
    """Run the small model on one prompt, and draw what each scale did into a PNG file."""
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 - only figures need it
    except ImportError as error:
        click.echo("Error: figures need another package: pip install toprovar-batch[figures]", err=True)
        raise SystemExit(2) from error

    generator = Generator(resolve(EngineSpec(policy=POLICY)), RuntimeSpec(device="cpu"))
    generator.setup()
    write_png(terms_figure(record_scales(generator)), output)


if __name__ == "__main__":
    terms_command()
