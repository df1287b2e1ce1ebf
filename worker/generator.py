"""Texts in, pixels and their statistics out, on one device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from toprovar_batch.kernels.compile_ahead import compile_ahead
from toprovar_batch.kernels.host_values import copy_to_host, queue_copy_to_host, to_device
from toprovar_batch.kernels.ops import fastest_attention

from .batch_memory import BatchKind, batch_bytes
from .batch_runner import BatchRunner
from .batching import choose_batch_size, common_h_div_w, plan_batches
from .generated import GeneratedBatch
from .guidance import text_rows
from .image_statistics import ImageStatistics
from .infinity.bsq import code_size
from .infinity.flops import decoder_flops, transformer_flops
from .infinity.schedule import ScaleSchedule, largest_map
from .infinity.text import EncodedText
from .loaded import LoadedModel, load_model
from .models import Model
from .pending import PendingBatch, PhaseClock, QueuedImages
from .pruning.history import PromptWork
from .pruning.policies.base import BatchContext, PruningPolicy
from .pruning.policies.build import PolicyFactory, policy_factory
from .pruning.policies.specs import PolicySpec
from .request import GenerationRequest
from .resolved import ResolvedSpec
from .sampler import sample_codes
from .specs import RuntimeSpec
from .workspace import Workspace


@dataclass(frozen=True)
class _Sampled:
    """A batch up to its codes: who ran it, the policy that watched, and whose text was cut."""

    runner: BatchRunner
    policy: PruningPolicy
    truncated: list[bool]


class Generator:
    """A model on a device and a policy, which turn batches of texts into pixels."""

    def __init__(self, spec: ResolvedSpec, runtime: RuntimeSpec) -> None:
        """Remember what to build; nothing is loaded before `setup`.

        Args:
            spec: decides the images.
            runtime: decides where and how they are made.

        Raises:
            ModelSpecError: a policy that does not fit the model and its scales.
        """
        self._spec, self._runtime = spec, runtime
        self._policy_factory = policy_factory(spec.policy, spec.num_scales, spec.model.transformer.depth)
        self._loaded: LoadedModel | None = None

    def setup(self) -> None:
        """Load the model, see how much memory it leaves, and compile its kernels where this machine has not.

        Raises:
            ModelSpecError: no such device, kernels that cannot run on it, or a model that cannot be built.
            CheckpointError: a weight file that cannot be had or does not fit.
        """
        self._loaded = load_model(self._spec.model, self._runtime)
        if self._loaded.backend.name == "triton" and self.device.type == "cuda":
            self._compile_ahead()

    def _compile_ahead(self) -> None:
        """Compile what a batch of the job launches, on a machine that has not done so."""
        h_div_w, vae = self._spec.image.h_div_w, self.model.vae.sizes
        batch = [GenerationRequest("probe", "a ball", None, 0, h_div_w)] * self.batch_size
        size = code_size(self._spec.schedule_of(h_div_w)[-1], vae.spatial_patchify)
        codes = torch.zeros(1, vae.codebook_dim, *size, device=self.device)
        queue = partial(self._queue, batch, PhaseClock(self.device), None)
        steps = queue, partial(self._ready.decoder.decode, codes)
        with torch.inference_mode(), fastest_attention(self.device):
            compile_ahead(f"{self._spec!r} {self.batch_size}", self.device, steps)
        self.release()

    def with_policy(self, policy: PolicySpec) -> "Generator":
        """A generator of the same loaded model that prunes by another rule.

        Raises:
            ModelSpecError: a policy that does not fit the model and its scales.
        """
        other = Generator(self._spec.with_policy(policy), self._runtime)
        other._loaded = self._loaded
        return other

    def with_backend(self, setting: str) -> "Generator":
        """A generator of the same loaded model that runs on other kernels.

        Args:
            setting: auto, torch or triton.

        Raises:
            ModelSpecError: kernels that cannot run on the device; says why.
        """
        runtime = RuntimeSpec.model_validate(self._runtime.model_dump() | {"backend": setting})
        other = Generator(self._spec, runtime)
        other._loaded = self._ready.with_backend(setting, self._spec.model.transformer.head_dim)
        return other

    @property
    def spec(self) -> ResolvedSpec:
        """What decides the images."""
        return self._spec

    @property
    def _ready(self) -> LoadedModel:
        if self._loaded is None:
            raise RuntimeError("Generator.setup() must be called before the model is used")
        return self._loaded

    @property
    def model(self) -> Model:
        """The loaded model."""
        return self._ready.model

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._ready.device

    @property
    def batch_size(self) -> int:
        """Images of a batch of the job's size, see `batch_size_of`."""
        return self.batch_size_of(self._spec.image.h_div_w)

    def batch_size_of(self, h_div_w: float) -> int:
        """Images of a batch of a size: as requested, or what keeps the GPU busy and fits into what `setup` found free.

        A CPU makes one image after the other whatever is requested, see `begin`.
        """
        loaded = self._ready
        if loaded.device.type != "cuda":
            return 1
        if self._runtime.batch_size is not None:
            return self._runtime.batch_size
        assert loaded.free_bytes is not None
        kind = BatchKind.of(self._spec, h_div_w, loaded.dtype)
        block_m = None if loaded.workspace is None else loaded.workspace.block_m
        return choose_batch_size(kind.image_tokens, partial(batch_bytes, kind, block_m), loaded.free_bytes)

    def generate(
        self, batch: Sequence[GenerationRequest], on_scale: Callable[[int], None] | None = None
    ) -> GeneratedBatch:
        """Generate a batch up to its pixels and wait for them, see `begin`."""
        return self.begin(batch, on_scale).result()

    def begin(
        self, batch: Sequence[GenerationRequest], on_scale: Callable[[int], None] | None = None
    ) -> PendingBatch:
        """Queue a batch on the GPU, up to the copy of its pixels to the host, without waiting for it.

        A policy that reads the device waits there all the same. The next batch may begin at once: what this one does not
        need any more on the device is free for it, as both use one stream.

        A CPU makes one image after the other, and is done when this returns. It gains nothing from more (two cores take
        1.08 s for the transformer of an image of `tiny`, alone and in a batch of four), while its products round
        differently with the number of rows. So an image is the same to the byte in any batch.

        Args:
            batch: requests of one image size.
            on_scale: called with -1 before the transformer starts, then with each scale's index once its
                work is queued.

        Raises:
            ValueError: no request, or requests of several image sizes.
            torch.OutOfMemoryError: the GPU does not hold the batch; earlier ones are unharmed.
        """
        common_h_div_w(batch)
        clock = PhaseClock(self.device)
        together = len(batch) if self.device.type == "cuda" else 1
        with torch.inference_mode(), fastest_attention(self.device):
            parts = [
                self._queue(batch[first : first + together], clock, on_scale)
                for first in range(0, len(batch), together)
            ]
        return PendingBatch(parts, clock)

    def _queue(
        self, batch: Sequence[GenerationRequest], clock: PhaseClock, on_scale: Callable[[int], None] | None
    ) -> QueuedImages:
        clock.mark(None)
        sampled = self._sample(batch, self._policy_factory, clock, on_scale, self._ready.workspace)
        runner = sampled.runner
        pixels, decoded = self._ready.decoder.decode(runner.codes.summed_codes)
        clock.mark("decode")
        with_maps = self._spec.policy.pruning_map
        maps = queue_copy_to_host(runner.history.pruning_maps()) if with_maps else None
        pixels = queue_copy_to_host(pixels)
        # A tensor of its own: a CPU copies nothing to the host, and the runner's may serve another batch.
        finite = queue_copy_to_host(runner.finite & decoded)
        clock.mark(None)
        return QueuedImages(pixels, finite, maps, self._statistics(sampled))

    def observe(self, batch: Sequence[GenerationRequest], make_policy: PolicyFactory) -> BatchRunner:
        """Run the transformer on a batch under another policy than the generator's, for what that policy sees.

        Args:
            batch: requests of one image size.
            make_policy: makes the policy.

        Raises:
            ValueError: no request, or requests of several image sizes.
        """
        common_h_div_w(batch)
        with torch.inference_mode(), fastest_attention(self.device):
            return self._sample(batch, make_policy, PhaseClock(self.device), None, None).runner

    def decode(self, runner: BatchRunner) -> np.ndarray:
        """The pictures of a batch that `observe` ran: [B, H, W, 3] uint8 RGB."""
        with torch.inference_mode():
            return copy_to_host(self._ready.decoder.decode(runner.codes.summed_codes)[0]).numpy()

    def _sample(
        self,
        batch: Sequence[GenerationRequest],
        make_policy: PolicyFactory,
        clock: PhaseClock,
        on_scale: Callable[[int], None] | None,
        workspace: Workspace | None,
    ) -> _Sampled:
        """Encode the text and generate the codes."""
        prompts, negatives = self._encode_text(batch)
        clock.mark("text")
        seeds = to_device([request.seed for request in batch], self.device)
        schedule = self._spec.schedule_of(batch[0].h_div_w)
        policy = make_policy(BatchContext(schedule, self._spec.model.transformer.depth, seeds))
        if on_scale is not None:
            on_scale(-1)
        runner = self._fresh_runner(prompts, negatives, schedule, largest_map(batch[0].h_div_w), workspace)
        sample_codes(runner, seeds, policy, on_scale)
        clock.mark("sample")
        truncated = [
            text.truncated or (negative is not None and negative.truncated)
            for text, negative in zip(prompts, negatives, strict=True)
        ]
        return _Sampled(runner, policy, truncated)

    def _fresh_runner(
        self,
        prompts: Sequence[EncodedText],
        negatives: Sequence[EncodedText | None],
        schedule: ScaleSchedule,
        largest: tuple[int, int],
        workspace: Workspace | None,
    ) -> BatchRunner:
        transformer, vae = self.model.transformer, self.model.vae
        features = [text.features for text in prompts]
        unconditional = [text.features if text else None for text in negatives]
        chunks = self._ready.text_chunks
        rows = text_rows(transformer, features, unconditional, guided=self._spec.settings.guided)
        return BatchRunner(
            transformer,
            transformer.encode_text(rows) if chunks is None else chunks.context(rows),
            schedule,
            self._spec.settings,
            largest_map=largest,
            codebook_dim=vae.sizes.codebook_dim,
            spatial_patchify=vae.sizes.spatial_patchify,
            backend=self._ready.backend,
            count_layers=self._spec.policy.pruning_map,
            packs=self._spec.policy.packs_tokens,
            workspace=workspace,
        )

    def _encode_text(
        self, batch: Sequence[GenerationRequest]
    ) -> tuple[list[EncodedText], list[EncodedText | None]]:
        """Encode each distinct text of a batch once."""
        texts = [request.prompt for request in batch]
        negatives = [request.negative_prompt if self._spec.settings.guided else None for request in batch]
        distinct = list(dict.fromkeys([*texts, *filter(None, negatives)]))
        encoded = dict(zip(distinct, self.model.text_encoder.encode(distinct), strict=True))
        return [encoded[text] for text in texts], [encoded[text] if text else None for text in negatives]

    def _statistics(self, sampled: _Sampled) -> list[ImageStatistics]:
        """What is known of each image of a batch when it is queued."""
        found = []
        for prompt, truncated in enumerate(sampled.truncated):
            work = sampled.runner.history.work(prompt)
            statistics = ImageStatistics(
                prompt_truncated=truncated,
                pruning_start_scale=work.pruning_start_scale,
                low_entropy_ratio=(None,) * len(work.schedule),
                keep_ratio=tuple(work.keep_ratio),
                token_layer_fraction=work.token_layer_fraction,
                flops=self._flops(work),
            )
            found.append(sampled.policy.measured(prompt, statistics))
        return found

    def _flops(self, work: PromptWork) -> float:
        model = self._spec.model
        head = work.head_tokens(self._spec.settings.guides_logits)
        sampled = transformer_flops(model.transformer, work.counts, work.branches, head)
        return sampled + decoder_flops(model.vae, work.schedule)

    def release(self) -> None:
        """Give back the memory that is kept from batch to batch, as after one that did not fit."""
        if self._ready.workspace is not None:
            self._ready.workspace.release()

    def describe(self) -> dict[str, Any]:
        """What this generator is, JSON-able: equal for all that make the same in the same way.

        `backend_fallback` is one sentence for the user where Triton's kernels were expected to run and do not; else None.
        """
        return {
            **self._ready.describe(),
            "preset": self._spec.model.preset,
            "resolution": self._spec.resolution,
            "batch_size": self.batch_size,
        }

    def usage(self) -> dict[str, Any]:
        """What loading and running took so far, JSON-able."""
        return self._ready.usage()


def generate_all(
    generator: Generator,
    requests: Sequence[GenerationRequest],
    batch_size: int,
    on_scale: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[GenerationRequest], GeneratedBatch]]:
    """Generate any requests in batches, one batch whenever the next is asked for.

    Args:
        generator: set up.
        requests: of any image sizes; those of one size go together.
        batch_size: most images of a batch.
        on_scale: see `Generator.generate`.

    Yields:
        The requests of a batch and what was made of them, with its times.
    """
    for batch in plan_batches(requests, batch_size):
        yield batch, generator.generate(batch, on_scale)
