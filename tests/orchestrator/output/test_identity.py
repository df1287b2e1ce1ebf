"""The identity of a job that exists: an output folder begun by an earlier version must go on."""

import json

import pytest

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.check import as_in_output, check_output
from toprovar_batch.orchestrator.output.identity import job_identity
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.errors import OutputFolderError

DEMO = {
    "model.preset": "tiny",
    "model.transformer": "package://worker/reference/weights/transformer",
    "model.vae": "package://worker/reference/weights/vae.safetensors",
    "model.text_encoder": "package://worker/reference/weights/text_encoder",
    "model.architecture.depth": 9,
    "model.architecture.width": 320,
    "model.architecture.num_heads": 5,
    "model.architecture.text_width": 256,
    "model.architecture.codebook_dim": 32,
    "model.architecture.spatial_patchify": False,
    "model.architecture.vae_base_channels": 32,
    "model.architecture.vae_channel_multipliers": [1, 2, 2, 4, 4],
    "model.random_weights": False,
    "model.weights_seed": 0,
    "model.dtype": "auto",
    "sampling.cfg_scale": 3.0,
    "sampling.temperature": 1.0,
    "sampling.top_k": 0,
    "sampling.top_p": 0.97,
    "sampling.greedy": False,
    "sampling.cfg_insertion_layer": 0,
    "sampling.seed": 0,
    "sampling.images_per_prompt": 1,
    "sampling.negative_prompt": None,
    "image.resolution": "0.25M",
    "image.format": "png",
    "image.quality": 95,
    "image.h_div_w": [1.0],
    "policy.pruning_map": False,
    "policy.conditional_from": 7,
    "policy.name": "toprovar",
    "policy.scale_pruning": False,
    "policy.layer_pruning": False,
    "policy.token_pruning": True,
    "policy.depth_threshold": 0.6,
    "policy.threshold_direction": "at_most",
    "policy.representative_scale": 7,
    "policy.beta": 0.003,
    "policy.layer_threshold": 0.5,
    "policy.a_min": 0.5,
    "policy.a_max": 0.5,
    "policy.normalisation": "mean_one",
    "policy.saliency": "code_detail",
    "policy.selection": "top_count",
    "policy.keep_ratio_floor": 0.01,
    "policy.restoration": "identity",
    "policy.code_layer_fraction": 1.0,
    "shard_size": 4,
    "prompts (number of samples)": 32,
    "prompts (content)": "e73140fa0ed92ec0f48c85eef8cd2522047a263764736fabf223a7e67f67db0a",
}
# By content: these change with the shipped weights, and with nothing else.
WEIGHTS = {
    "model.transformer (file)": "8f23e712, 32513496 bytes",
    "model.vae (file)": "68c3c4bc, 11275302 bytes",
    "model.text_encoder (file)": "b03a5d04, 3149186 bytes",
}


def test_the_demo_has_the_identity_that_it_always_had(pytestconfig):
    job = load_job(str(pytestconfig.rootpath / "jobs/demo.yaml"))
    assert job_identity(job, plan_job(job)) == DEMO | WEIGHTS


def test_only_a_jpeg_that_is_not_as_all_were_at_first_has_its_subsampling_in_its_identity(write_job):
    def recorded(*overrides):
        return job_identity(load_job(write_job(), overrides)).get("image.subsampling")

    assert recorded("image.subsampling=4:4:4") is None  # of a PNG
    assert recorded("image.format=jpeg") == "4:4:4"
    assert recorded("image.format=jpeg", "image.subsampling=4:2:2") == "4:2:2"
    assert recorded("image.format=jpeg", "image.subsampling=4:2:0") is None
    assert recorded("image.format=jpeg", "image.quality=94") is None


def test_a_dataset_of_jpegs_begun_before_there_was_a_choice_goes_on_as_it_began(write_job, tmp_path):
    path = write_job()
    job = load_job(path, ["image.format=jpeg"])
    earlier = job_identity(job, plan_job(job))
    assert earlier.pop("image.subsampling") == "4:4:4"
    (tmp_path / "out/_job").mkdir(parents=True)
    (tmp_path / "out/data").mkdir()
    (tmp_path / "out/data/part-00000-of-00002.parquet").touch()
    record = {"name": "job", "num_samples": 8, "num_shards": 2, "identity": earlier}
    (tmp_path / "out/_job/job.json").write_text(json.dumps(record))

    continued = as_in_output(job)
    assert continued.resolved.image.jpeg_subsampling == "4:2:0"
    assert job_identity(continued, plan_job(continued)) == earlier
    assert check_output(job, plan_job(job)).startswith("of this job")
    other = load_job(path, ["image.format=jpeg", "image.subsampling=4:4:4"])
    assert as_in_output(other) == other
    with pytest.raises(OutputFolderError, match=r"image\.subsampling"):
        check_output(other, plan_job(other))
