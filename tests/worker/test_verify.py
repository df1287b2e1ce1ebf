"""Agreement with the recorded vectors, and with a second implementation in the cases they do not cover."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.worker.infinity.config import TransformerArchitecture, VaeArchitecture
from toprovar_batch.worker.infinity.schedule import largest_map, scale_schedule
from toprovar_batch.worker.models import random_transformer, random_vae
from toprovar_batch.worker.verify import verify_folder

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CPU = torch.device("cpu")


def _load_reference():
    path = Path(__file__).with_name("reference_model.py")
    spec = importlib.util.spec_from_file_location("reference_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = _load_reference()


@pytest.mark.slow
def test_the_kernels_pass_their_cases(run_cases):
    assert run_cases(Path(__file__).with_name("verify_cases.py")) == 2


def test_a_device_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(main, ["verify", str(GOLDEN / "square"), "--device", "cuda"])
    assert result.exit_code == 2
    assert "no GPU here" in result.output


def test_kernels_that_cannot_run_on_the_device_are_said():
    result = CliRunner().invoke(main, ["verify", str(GOLDEN / "square"), "--backend", "triton"])
    assert result.exit_code == 2
    assert "the triton backend cannot run here" in result.output


def test_both_recorded_folders_agree(golden_folder):
    report = verify_folder(golden_folder)
    assert report.passed
    assert len(report.scales) == 7
    assert max(scale.logit_error for scale in report.scales) < 2e-6


def test_command_prints_every_scale_and_exits_zero():
    result = CliRunner().invoke(main, ["verify", str(GOLDEN / "square")])
    assert result.exit_code == 0, result.output
    assert "16x16" in result.output
    assert result.output.endswith("agrees\n")


def _altered(tmp_path, change):
    folder = tmp_path / "square"
    shutil.copytree(GOLDEN / "square", folder)
    recorded = load_file(folder / "io.safetensors")
    change(recorded)
    save_file(recorded, folder / "io.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logits.3", lambda t: t[1, 5].add_(3e-5 * t.abs().max())),
        ("bits.2", lambda t: t[0, 0, 0, 0].bitwise_xor_(1)),
        ("entropy.2.4", lambda t: t[3, 7].add_(2e-4)),
        ("image_bgr", lambda t: t[0, 0, 0, 0].bitwise_xor_(8)),
        ("image_bgr", lambda t: t[:, :4].bitwise_xor_(1)),
        ("logits.1", lambda t: t[0, 0, 0].fill_(float("nan"))),
        ("entropy.0.1", lambda t: t[0, 0].fill_(float("nan"))),
        ("latent", lambda t: t[0, 0, 0, 0].add_(0.1)),
    ],
)
def test_a_deviation_beyond_its_tolerance_exits_one(tmp_path, name, change):
    folder = _altered(tmp_path, lambda recorded: change(recorded[name]))
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 1
    assert "does not agree" in result.output


def test_a_missing_recorded_tensor_is_named(tmp_path):
    folder = _altered(tmp_path, lambda recorded: recorded.pop("bits.4"))
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 2
    assert "bits.4" in result.output


def _set(*path, value):
    def change(meta):
        for name in path[:-1]:
            meta = meta[name]
        meta[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("text_lens", value=[5, 12]),
        _set("text_lens", value="long"),
        _set("model", "text_channels", value=128),
        _set("model", "depth", value="four"),
        _set("model", "embed_dim", value=-1),
        _set("model", "embed_dim", value=63),
        _set("vae", "base_ch", value=33),
        _set("schedule", value=[]),
        _set("schedule", value=[[1, 1, 1]]),
        _set("schedule", value=[[1, 1], [9, 9]]),
        _set("sampling", "tau", value=0),
        _set("sampling", "tau", value=[1.0, 2.0]),
        _set("sampling", "insertion", value=None),
        _set("sampling", value=7),
    ],
)
def test_a_description_that_does_not_fit_is_one_clear_line(tmp_path, change):
    folder = _altered(tmp_path, lambda _recorded: None)
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logits.2", lambda t: t[:1]),
        ("logits.2", lambda t: t[:, :3]),
        ("bits.1", lambda t: t[0]),
        ("entropy.1.1", lambda t: t[:2]),
    ],
)
def test_a_recorded_tensor_of_another_shape_is_named(tmp_path, name, change):
    folder = _altered(tmp_path, lambda recorded: recorded.update({name: change(recorded[name]).contiguous()}))
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 2, result.output
    assert name in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("broken", ["missing", "no meta", "not json", "no key"])
def test_an_incomplete_folder_is_one_clear_line(tmp_path, broken):
    folder = tmp_path / "case"
    if broken != "missing":
        shutil.copytree(GOLDEN / "square", folder)
    meta = folder / "meta.json"
    if broken == "no meta":
        meta.unlink()
    elif broken == "not json":
        meta.write_text("{")
    elif broken == "no key":
        content = json.loads(meta.read_text())
        del content["model"]["depth"]
        meta.write_text(json.dumps(content))
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert ("depth" if broken == "no key" else "case") in result.output


TRANSFORMER = TransformerArchitecture(depth=3, width=64, num_heads=2, text_width=128, bits_per_token=16)
VAE = VaeArchitecture(16, 32, (1, 1, 1, 1, 1), spatial_patchify=False)
VAE_PATCHIFY = VaeArchitecture(4, 32, (1, 1, 1, 1), spatial_patchify=True)


def _record(
    folder,
    *,
    h_div_w=1.0,
    pn="0.06M",
    scales=None,
    vae=VAE,
    lens=(3,),
    negative_lens=None,
    cfg=3.0,
    tau=1.0,
    insertion=(0,),
    form="pth",
):
    """Write a folder of vectors made by the reference implementation."""
    folder.mkdir()
    schedule = scale_schedule(h_div_w, pn)[:scales]
    model = random_transformer(TRANSFORMER, 1, CPU, torch.float32)
    decoder = random_vae(vae, 2, CPU, torch.float32)
    state = model.state_dict()
    count = len(schedule)
    cfg_list, tau_list = (list(v) if isinstance(v, tuple) else [v] * count for v in (cfg, tau))
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randn(n, 128, generator=generator) for n in lens]
    negatives = [torch.randn(n, 128, generator=generator) for n in negative_lens or ()]
    slow = reference.ReferenceModel(
        state,
        TRANSFORMER.depth,
        2,
        TRANSFORMER.text_pool_heads,
        schedule,
        largest_map(h_div_w),
        vae.spatial_patchify,
        vae.codebook_dim,
    )
    record = slow.record(prompts, negatives or [None] * len(prompts), cfg_list, tau_list, insertion)
    record["image_bgr"] = reference.decode(
        decoder.state_dict(), record["latent"], len(vae.channel_multipliers)
    )
    record["text_features"] = torch.cat(prompts)
    if negatives:
        record["negative_text_features"] = torch.cat(negatives)
    as_float = {k: v.float() if v.is_floating_point() else v for k, v in record.items()}
    save_file({k: v.contiguous() for k, v in as_float.items()}, folder / "io.safetensors")
    sampling = {
        "ratio": h_div_w,
        "pn": pn,
        "lens": list(lens),
        "cfg_list": cfg if not isinstance(cfg, tuple) else cfg_list,
        "tau": tau if not isinstance(tau, tuple) else tau_list,
        "top_k": 1,
        "top_p": 0.0,
        "insertion": list(insertion),
    }
    meta = {
        "model": {
            "apply_spatial_patchify": int(vae.spatial_patchify),
            "text_channels": 128,
            "depth": 3,
            "embed_dim": 64,
            "num_heads": 2,
            "block_chunks": 1,
            "pn": pn,
        },
        "schedule": [list(scale) for scale in schedule],
        "sampling": sampling,
        "text_lens": list(lens),
        "vae": {"z_channels": vae.codebook_dim, "base_ch": 32, "ch_mult": list(vae.channel_multipliers)},
    }
    if negatives:
        meta["negative_text_lens"] = list(negative_lens)
    (folder / "meta.json").write_text(json.dumps(meta))
    torch.save({"vae": decoder.state_dict()}, folder / "vae.pth")
    if form == "safetensors":
        state = {
            k: v.transpose(1, 2).contiguous() if k.endswith("scale_mul_1H11") else v for k, v in state.items()
        }
        state["cfg_uncond"] = state["cfg_uncond"][:100].contiguous()
        save_file(state, folder / "infinity.safetensors")
    else:
        torch.save(state, folder / "infinity.pth")
    return folder


CASES = {
    "tall map": {"h_div_w": 1.5},
    "wide map": {"h_div_w": 1 / 1.25, "lens": (4, 2)},
    "first scales that another shape has, too": {"h_div_w": 1.75, "scales": 3},
    "no guidance": {"cfg": 1.0, "lens": (2, 5)},
    "guidance and temperature a scale": {
        "cfg": (1.0, 2.0, 3.0, 1.0, 4.0, 2.5, 3.0),
        "tau": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    },
    "negative prompts of their own lengths": {"lens": (3, 6), "negative_lens": (5, 1)},
    "guided hidden state": {"insertion": (-2,), "lens": (3, 4)},
    "guided last hidden state, some scales unguided": {
        "insertion": (-1,),
        "cfg": (3.0, 3.0, 1.0, 3.0, 1.0, 3.0, 2.0),
    },
    "patchify, wide": {"vae": VAE_PATCHIFY, "h_div_w": 0.5},
    "safetensors with heads on the other axis": {"form": "safetensors"},
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_second_implementation(tmp_path, case):
    report = verify_folder(_record(tmp_path / "case", **CASES[case]))
    assert report.passed, report


@pytest.mark.slow
def test_agrees_at_a_quarter_megapixel(tmp_path):
    report = verify_folder(_record(tmp_path / "case", h_div_w=2.0, pn="0.25M", lens=(2,)))
    assert len(report.scales) == 10
    assert report.passed, report


def test_negative_prompts_without_their_lengths_are_refused(tmp_path):
    def add_negatives(recorded):
        recorded["negative_text_features"] = torch.randn(16, 256)  # as many as the prompts have

    folder = _altered(tmp_path, add_negatives)
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 2
    assert "negative_text_lens' is missing" in result.output
    for lengths in ([16], [5, 5, 6], [5, 12], "short"):
        meta = json.loads((GOLDEN / "square" / "meta.json").read_text()) | {"negative_text_lens": lengths}
        (folder / "meta.json").write_text(json.dumps(meta))
        result = CliRunner().invoke(main, ["verify", str(folder)])
        assert result.exit_code == 2, result.output
        assert result.output.count("\n") == 1


def test_a_ratio_that_is_no_shape_of_an_ambiguous_schedule_is_refused(tmp_path):
    folder = _altered(tmp_path, lambda _recorded: None)
    meta = json.loads((folder / "meta.json").read_text())
    meta["schedule"] = [[1, 1], [2, 2], [3, 3]]
    (folder / "meta.json").write_text(json.dumps(meta))
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 2, result.output
    assert "sampling.ratio" in result.output
