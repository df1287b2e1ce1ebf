"""The plan: ids and seeds that depend on a sample alone, shards, fingerprint and warnings."""

import hashlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.identity import job_identity
from toprovar_batch.orchestrator.prompts import sample_plan
from toprovar_batch.orchestrator.prompts.table_spool import TableSpool

CATS = ("a cat", "two cats", "three cats")


def job_from(**keys):
    return JobSpec.model_validate({"prompts": {"source": "p.txt"}, "output": "out", **keys})


def prompts(*texts, **columns):
    errors = ["the prompt is empty" if not text else None for text in texts]
    table = pa.table({"prompt": pa.array(texts, pa.string()), "prompt_error": pa.array(errors, pa.string())})
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def plan_samples(job, table):
    return sample_plan.plan_samples(job, TableSpool.of(table))


def column(plan, name):
    return plan.samples.column(name).to_pylist()


def documented_seed(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def test_the_samples_have_the_agreed_columns_and_types():
    plan = plan_samples(job_from(), prompts(*CATS, category=["x", "y", "z"]))
    assert plan.samples.schema.names == [
        "sample_id", "prompt", "negative_prompt", "seed", "h_div_w", "prompt_error", "category",
    ]  # fmt: skip
    types = dict(zip(plan.samples.schema.names, plan.samples.schema.types, strict=True))
    assert (types["sample_id"], types["seed"], types["h_div_w"]) == (pa.string(), pa.int64(), pa.float64())
    assert types["negative_prompt"] == types["prompt_error"] == pa.string()
    pq.write_table(plan.samples, pa.BufferOutputStream())


def test_an_id_and_its_seed_depend_on_the_row_alone():
    rows = [f"prompt {index}" for index in range(50)]
    plan = plan_samples(job_from(), prompts(*rows))
    by_prompt = dict(
        zip(rows, zip(column(plan, "sample_id"), column(plan, "seed"), strict=True), strict=True)
    )
    some = random.Random(0).sample(rows, 20)
    again = plan_samples(job_from(), prompts(*some))
    assert [by_prompt[row][0] for row in some] == column(again, "sample_id")
    assert [by_prompt[row][1] for row in some] == column(again, "seed")
    assert all(len(sample_id) == 16 and int(sample_id, 16) >= 0 for sample_id, _ in by_prompt.values())
    assert len({seed for _, seed in by_prompt.values()}) == len(rows)


def test_a_derived_id_is_the_documented_hash():
    table = prompts("a cat", negative_prompt=["blurry"])
    [sample_id] = column(plan_samples(job_from(), table), "sample_id")
    content = "prompt:5:a cat\nnegative_prompt:6:blurry\n"
    assert sample_id == hashlib.sha256(content.encode()).hexdigest()[:16]


def test_content_that_differs_only_in_its_own_settings_has_other_ids():
    table = prompts("a", "a", "a", seed=[1, 2, 2], h_div_w=[1.0, 1.0, 2.0])
    plan = plan_samples(job_from(), table)
    assert len({sample_id[:16] for sample_id in column(plan, "sample_id")}) == 3
    assert plan.warnings == ()


def test_identical_rows_are_numbered_and_named():
    plan = plan_samples(job_from(), prompts("a cat", "x", "a cat", "y", "a cat"))
    first, _, second, _, third = column(plan, "sample_id")
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert len(set(column(plan, "seed"))) == 5
    assert plan.warnings == (
        "repeated prompts, each copy with images of its own: 1 ('a cat' in rows 1, 3, 5)",
    )


def test_only_the_first_few_repeats_are_named():
    plan = plan_samples(job_from(), prompts(*(["w" * 90] * 9), *"abcdabcd"))
    [warning] = plan.warnings
    assert warning.startswith("repeated prompts, each copy with images of its own: 5 (")
    assert f"'{'w' * 59}…' in rows 1, 2, 3 and 6 more;" in warning
    assert warning.endswith("'b' in rows 11, 15 and 2 more)")


def test_bad_rows_are_counted_and_named_and_stay_in_the_plan():
    plan = plan_samples(job_from(), prompts("a", "", "b", None))
    assert (plan.num_prompts, plan.num_bad_prompts, plan.samples.num_rows) == (4, 2, 4)
    assert plan.warnings[0] == (
        "prompts that cannot be used and become error rows: 2 (row 2: the prompt is empty; row 4: the prompt is empty)"
    )
    assert len(set(column(plan, "sample_id"))) == 4
    assert None not in column(plan, "seed")


@pytest.mark.parametrize(
    ("cfg_scale", "warned"), [(1, True), ((1.0,) * 10, True), ((1.0,) * 9 + (2.0,), False), (None, False)]
)
def test_negative_prompts_without_guidance_are_warned_of(cfg_scale, warned):
    table = prompts("a", "b", negative_prompt=["blurry", None])
    plan = plan_samples(job_from(sampling={"cfg_scale": cfg_scale}), table)
    sentence = "negative prompts without effect, as sampling.cfg_scale is 1 and guides nothing: 1"
    assert plan.warnings == ((sentence,) if warned else ())
    assert plan_samples(job_from(sampling={"cfg_scale": cfg_scale}), prompts("a")).warnings == ()


def test_given_ids_decide_the_seed():
    plan = plan_samples(job_from(sampling={"seed": 9}), prompts(*CATS, sample_id=["u", "v", "日本"]))
    assert column(plan, "sample_id") == ["u", "v", "日本"]
    assert column(plan, "seed") == [documented_seed(f"9/{name}") for name in ("u", "v", "日本")]


def test_given_seeds_are_taken_and_gaps_derived():
    table = prompts(*CATS, sample_id=["u", "v", "w"], seed=pa.array([5, None, 2**63 - 1], pa.int64()))
    assert column(plan_samples(job_from(), table), "seed") == [5, documented_seed("0/v"), 2**63 - 1]


def test_several_images_of_a_prompt_are_samples_of_their_own():
    table = prompts("a", "b", sample_id=["u", "v"], n=[1, 2])
    plan = plan_samples(job_from(sampling={"images_per_prompt": 2}), table)
    assert column(plan, "sample_id") == ["u-0", "u-1", "v-0", "v-1"]
    assert column(plan, "prompt_id") == ["u", "u", "v", "v"]
    assert column(plan, "image_index") == [0, 1, 0, 1]
    assert column(plan, "n") == [1, 1, 2, 2]
    assert column(plan, "seed") == [documented_seed(f"0/{name}") for name in column(plan, "sample_id")]
    assert (plan.num_prompts, plan.samples.num_rows) == (2, 4)


def test_several_images_from_a_given_seed_still_differ():
    table = prompts("a", sample_id=["u"], seed=[5])
    plan = plan_samples(job_from(sampling={"images_per_prompt": 3}), table)
    assert column(plan, "seed") == [5, documented_seed("5/1"), documented_seed("5/2")]


def test_several_ratios_give_every_prompt_in_each_grouped_by_ratio():
    job = job_from(image={"h_div_w": (1.0, 0.75)}, sampling={"images_per_prompt": 2})
    plan = plan_samples(job, prompts("a", "b", sample_id=["u", "u-hw1.0"]))
    assert column(plan, "h_div_w") == [1.0] * 4 + [0.75] * 4
    assert column(plan, "sample_id")[:4] == ["u-hw1.0-0", "u-hw1.0-1", "u-hw1.0-hw1.0-0", "u-hw1.0-hw1.0-1"]
    assert len(set(column(plan, "sample_id"))) == 8
    one_each = plan_samples(job_from(image={"h_div_w": (1.0, 0.75)}), prompts("a", sample_id=["u"]))
    assert column(one_each, "sample_id") == ["u-hw1.0", "u-hw0.75"]


def test_ratios_and_negative_prompts_of_rows_win_over_the_job():
    table = prompts("a", "b", h_div_w=[2.0, None], negative_prompt=[None, "blurry"])
    job = job_from(image={"h_div_w": 0.5}, sampling={"negative_prompt": "dark"})
    plan = plan_samples(job, table)
    assert column(plan, "h_div_w") == [2.0, 0.5]
    assert column(plan, "negative_prompt") == ["dark", "blurry"]


@pytest.mark.parametrize(("num_rows", "sizes"), [(1, [1]), (7, [4, 3]), (8, [4, 4]), (9, [4, 4, 1])])
def test_shards_cover_every_sample_once(num_rows, sizes):
    plan = plan_samples(job_from(shard_size=4), prompts(*(f"p{index}" for index in range(num_rows))))
    shards = [plan.shard(index) for index in range(plan.num_shards)]
    assert [shard.num_rows for shard in shards] == sizes
    assert [name for shard in shards for name in shard.column("sample_id").to_pylist()] == column(
        plan, "sample_id"
    )
    with pytest.raises(IndexError):
        plan.shard(plan.num_shards)


def test_the_fingerprint_does_not_see_chunks():
    whole = prompts(*CATS, n=[1, None, 3], tags=[["a"], [], None])
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 2)])
    assert plan_samples(job_from(), whole).fingerprint == plan_samples(job_from(), pieces).fingerprint


@pytest.mark.parametrize(
    "other",
    [
        prompts("a cat", "three cats", "two cats", n=[1, 2, 3]),
        prompts("a cat", "two cats", "three cats", n=[1, 2, 4]),
        prompts("a cat", "two cats", "three cats", n=[1, 2, None]),
        prompts("a cat", "two cats", "three cats", n=[1.0, 2.0, 3.0]),
        prompts("a cat", "two cats", "three cats", m=[1, 2, 3]),
        prompts("a cattw", "o cats", "three cats", n=[1, 2, 3], sample_id=["u", "v", "w"]),
    ],
)
def test_the_fingerprint_sees_any_change(other):
    plan = plan_samples(job_from(), prompts(*CATS, n=[1, 2, 3]))
    assert plan.fingerprint != plan_samples(job_from(), other).fingerprint


def test_identity_tells_a_longer_list_of_prompts_from_another_one():
    job = job_from()
    full, short = (plan_samples(job, prompts(*texts)) for texts in (CATS, CATS[:2]))
    identity = job_identity(job, full)
    assert (identity["prompts (number of samples)"], identity["prompts (content)"]) == (3, full.fingerprint)
    assert job_identity(job, short)["prompts (number of samples)"] == 2
