"""A case of every kernel in one process of Triton's interpreter, so that `make test-fast` has run each kernel."""

from pathlib import Path

FOLDER = Path(__file__).parent
CASES = {
    "bit_head": "test_errors_are_at_most_twice_those_of_pytorch[300.0-200-12-lengths6]",
    "bit_sampling": "test_prompts_without_an_unconditional_branch_keep_their_logits[twins0]",
    "flash_attention": "test_entropy_of_each_head_is_what_is_averaged[torch.bfloat16]",
    "group_norm_swish": "test_the_twin_is_within_the_rounding_of_its_steps[torch.bfloat16]",
    "qk_norm_rope": "test_the_backend_chooses_and_both_agree",
    "residual_norm": "test_errors_are_at_most_twice_those_of_pytorch[96-lengths4-torch.bfloat16-(300.0, 1.0)-by_row]",
}


def test_every_kernel_has_a_case_here():
    assert {path.stem.removesuffix("_cases") for path in FOLDER.glob("*_cases.py")} == set(CASES)


def test_every_kernel_passes_one_of_its_cases(run_cases):
    assert run_cases(*(f"{FOLDER}/{kernel}_cases.py::{name}" for kernel, name in CASES.items())) == len(CASES)
