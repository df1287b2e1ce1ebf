"""The figure of terms shows a run as it is without anyone watching."""

import math
import sys

import pytest
import torch
from click.testing import CliRunner

from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.pruning.policies.specs import ToprovarSpec
from toprovar_batch.worker.reference.terms_figure import (
    PROMPT,
    record_scales,
    terms_command,
    terms_figure,
    write_png,
)
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, RuntimeSpec

POLICY = ToprovarSpec(
    depth_threshold=1,
    a_min=0.5,
    layer_threshold=0,
    conditional_from=6,
    representative_scale=4,
    pruning_map=True,
)


@pytest.fixture(scope="module")
def generator():
    spec = EngineSpec.model_validate(
        {
            "model": {"random_weights": True, "architecture": {"depth": 3, "width": 64, "num_heads": 2}},
            "image": {"resolution": "0.06M"},
            "policy": POLICY.model_dump(),
        }
    )
    generator = Generator(resolve(spec), RuntimeSpec(device="cpu"))
    generator.setup()
    return generator


@pytest.fixture(scope="module")
def scales(generator):
    return record_scales(generator)


def test_what_is_drawn_is_what_a_job_makes(generator, scales):
    made = generator.generate([GenerationRequest("terms", PROMPT, None, 0)])
    [statistics] = made.statistics
    assert (scales[-1].pixels == made.pixels[0]).all()
    assert [scale.keep_ratio for scale in scales] == list(statistics.keep_ratio)
    ratios = zip(statistics.low_entropy_ratio, scales, strict=True)
    assert all(scale.rho == ratio for ratio, scale in ratios if ratio is not None)
    assert [scale.branches for scale in scales] == [2, 2, 2, 2, 2, 2, 1]
    drawn = torch.cat([scale.layers_run.flatten() for scale in scales])
    assert drawn.tolist() == list(statistics.pruning_map)


def test_a_column_a_scale_and_the_representative_one_is_framed(scales, tmp_path):
    figure = terms_figure(scales, POLICY)
    assert len(figure.axes) == 4 * len(scales)
    thick = [index // 4 for index, axes in enumerate(figure.axes) if axes.spines["left"].get_linewidth() > 1]
    assert set(thick) == {4}
    found = [axes.get_xlabel() for axes in figure.axes[1::4]]
    assert found == [
        "" if scale.entropy is None else "rho: none" if math.isnan(scale.rho) else f"rho {scale.rho:.2f}"
        for scale in scales
    ]
    assert [bool(label) for label in found] == [True] * 5 + [False] * 2
    for name in ("one.png", "two.png"):
        write_png(figure, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_plain_installation_is_told_what_the_figure_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(terms_command, [str(tmp_path / "a.png")])
    assert result.exit_code == 2
    assert result.stderr == "Error: figures need another package: pip install toprovar-batch[figures]\n"
