"""Requests in, encoded images and their statistics out, on one device."""

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from toprovar_batch.kernels.host_values import copy_to_host
from toprovar_batch.kernels.ops import Backend, fastest_attention

from .batch_runner import BatchRunner
from .generated import GeneratedBatch, PhaseTimes
from .guidance import text_rows
from .images import encode_images
from .infinity.flops import decoder_flops, transformer_flops
from .infinity.kv_cache import cache_bytes
from .infinity.schedule import ScaleSchedule, image_size, largest_map, nearest_h_div_w
from .infinity.text import EncodedText
from .infinity.vae import to_uint8
from .models import Model, build_model
from .pruning.history import PromptWork
from .pruning.policies.base import BatchContext, PruningPolicy
from .pruning.policies.build import PolicyFactory, policy_factory
from .pruning.policies.specs import PolicySpec
from .request import GenerationRequest, GenerationResult
from .resolved import ResolvedSpec
from .runtime import resolve_device, resolve_dtype, resolve_kernels
from .sampler import sample_codes
from .sampling_settings import SamplingSettings
from .specs import ImageSpec, RuntimeSpec

_LARGEST_AUTO_BATCH = 16
# One image fills a GPU in the decoder, whose activations are the largest tensors of all; and decoded alone, an
# image does not depend on its batch even in the last digit.
_DECODE_CHUNK = 1
# Hidden states alive at the peak of a block, in multiples of the packed [T, C] one: queries, keys and
# values in float32 and their products.
_ACTIVATION_MULTIPLE = 24
T = TypeVar("T")


class Engine:
    """A model on a device that turns batches of requests into results."""

    def __init__(self, spec: ResolvedSpec, runtime: RuntimeSpec) -> None:
        """Remember what to build; nothing is loaded before `setup`.

        Args:
            spec: decides the images.
            runtime: decides where and how they are made.

        Raises:
            ModelSpecError: a policy that does not fit the model and its scales.
        """
        self._spec, self._runtime = spec, runtime
        self._settings = spec.settings
        self._policy_factory = policy_factory(spec.policy, spec.num_scales, spec.model.transformer.depth)
        self._model: Model | None = None
        self._batch_limit: int | None = None
        self._out_of_memory: list[dict[str, int]] = []
        self._load_seconds = 0.0

    @cached_property
    def device(self) -> torch.device:
        """Where the model runs."""
        return resolve_device(self._runtime.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Compute dtype: as asked for, else bfloat16 on a GPU and float32 on a CPU."""
        return resolve_dtype(self._spec.model.dtype, self.device)

    @cached_property
    def backend(self) -> Backend:
        """Which implementation of the kernels runs, and why."""
        return resolve_kernels(self._runtime.backend, self.device, self._spec.model.transformer.head_dim)

    @property
    def model(self) -> Model:
        """The loaded model."""
        if self._model is None:
            raise RuntimeError("Engine.setup() must be called before the model is used")
        return self._model

    @property
    def settings(self) -> SamplingSettings:
        """How bits are drawn, one value a scale."""
        return self._settings

    @property
    def image_spec(self) -> ImageSpec:
        """Size and encoding of the images."""
        return self._spec.image

    def setup(self) -> None:
        """Load the model.

        Raises:
            ModelSpecError: no such device, kernels that cannot run on it, or a model that cannot be built.
            CheckpointError: a weight file that cannot be had or does not fit.
        """
        start = time.perf_counter()
        _ = self.backend  # before the weights: a setting that cannot be is said at once
        self._model = build_model(self._spec.model, self.device, self.dtype)
        if self.device.type == "cuda":
            self._model.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._synchronize()
        self._load_seconds = time.perf_counter() - start

    def with_policy(self, policy: PolicySpec) -> "Engine":
        """An engine of the same loaded model that prunes by another rule.

        Raises:
            ModelSpecError: a policy that does not fit the model and its scales.
        """
        other = Engine(self._spec.with_policy(policy), self._runtime)
        other._model = self._model
        return other

    def schedule_of(self, h_div_w: float) -> ScaleSchedule:
        """The scale schedule of a wished height / width at this engine's resolution."""
        return self._spec.schedule_of(h_div_w)

    @cached_property
    def batch_size(self) -> int:
        """Images a batch: as asked for, or what the free memory holds; on a CPU always one, see `generate_pixels`."""
        if self.device.type != "cuda":
            return 1
        if self._runtime.batch_size is not None:
            return self._runtime.batch_size
        free, _total = torch.cuda.mem_get_info(self.device)
        schedule = self.schedule_of(self._spec.image.h_div_w)
        sizes = self.model.transformer.sizes
        rows = 2 if self._settings.guided else 1
        kept = sum(h * w for h, w in schedule[:-1])
        last = schedule[-1][0] * schedule[-1][1]
        per_image = cache_bytes(sizes, rows, kept, last, self.dtype)
        per_image += rows * last * sizes.width * self.dtype.itemsize * _ACTIVATION_MULTIPLE
        if getattr(self._spec.policy, "restoration", None) == "cached":
            largest = schedule[-2][0] * schedule[-2][1]  # the last scale whose changes may be kept
            per_image += sizes.depth * rows * largest * sizes.width * self.dtype.itemsize
        return max(1, min(_LARGEST_AUTO_BATCH, int(0.85 * free / per_image)))

    def plan_batches(
        self, requests: Sequence[GenerationRequest], batch_size: int | None = None
    ) -> list[list[GenerationRequest]]:
        """Group requests by scale schedule and cut the groups into batches.

        Args:
            requests: in any order.
            batch_size: images a batch; None takes the engine's own.
        """
        size = batch_size or self.batch_size
        groups: dict[float, list[GenerationRequest]] = defaultdict(list)
        for request in requests:
            groups[nearest_h_div_w(request.h_div_w)].append(request)
        return [
            group[start : start + size] for group in groups.values() for start in range(0, len(group), size)
        ]

    def generate(self, batch: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Generate one batch; all its requests share a scale schedule.

        A request that cannot be generated becomes a result with status "error". Out of GPU memory the batch
        is halved, for this and all later batches, down to one image.

        Args:
            batch: any number of requests.

        Returns:
            One result a request, in order.
        """
        start = time.perf_counter()
        results: dict[str, GenerationResult] = {}
        pending = []
        for request in batch:
            problem = _problem(request)
            if problem is None:
                pending.append(request)
            else:
                results[request.sample_id] = GenerationResult(request.sample_id, "error", problem)
        while pending:
            chunk = pending[: self._batch_limit]
            done = self._attempt(chunk)
            if done is None:
                continue
            results |= {result.sample_id: result for result in done}
            pending = pending[len(chunk) :]
        total_ms = 1e3 * (time.perf_counter() - start)
        for result in results.values():
            result.total_ms = total_ms
        return [results[request.sample_id] for request in batch]

    def _attempt(self, chunk: Sequence[GenerationRequest]) -> list[GenerationResult] | None:
        """Generate a chunk; None where it must be tried again with the new, halved limit."""
        try:
            return self._generate_chunk(chunk)
        except torch.OutOfMemoryError:
            self._out_of_memory.append({"batch_size": len(chunk)})
        # Only here, past the handler, are the failed attempt's tensors free.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(chunk) > 1:
            self._batch_limit = len(chunk) // 2
            return None
        message = "out of GPU memory even alone; use a smaller resolution or a larger GPU"
        return [GenerationResult(chunk[0].sample_id, "error", message)]

    def _generate_chunk(self, batch: Sequence[GenerationRequest]) -> list[GenerationResult]:
        times = PhaseTimes()
        schedule = self.schedule_of(batch[0].h_div_w)
        made = self.generate_pixels(batch, schedule, times)
        encoded = self._timed(times, "encode", lambda: encode_images(made.pixels, self._spec.image))
        height, width = image_size(schedule)
        share = 1e3 / len(batch)
        results = []
        for index, (request, image) in enumerate(zip(batch, encoded, strict=True)):
            if not made.finite[index]:
                message = "the model gave numbers that are not finite; check its weights and dtype"
                results.append(GenerationResult(request.sample_id, "error", message))
                continue
            work = made.work[index]
            result = GenerationResult(
                request.sample_id,
                "ok",
                image=image,
                width=width,
                height=height,
                format=self._spec.image.format,
                prompt_truncated=made.truncated[index],
                text_ms=times.text * share,
                sample_ms=times.sample * share,
                decode_ms=times.decode * share,
                encode_ms=times.encode * share,
                batch_size=len(batch),
                pruning_start_scale=work.pruning_start_scale,
                low_entropy_ratio=made.low_entropy_ratio[index],
                keep_ratio=work.keep_ratio,
                layer_representation_score=made.layer_representation_score[index],
                token_layer_fraction=work.token_layer_fraction,
                flops=self._flops(work),
                pruning_map=made.pruning_maps[index] if made.pruning_maps else None,
            )
            results.append(result)
        return results

    def generate_pixels(
        self,
        batch: Sequence[GenerationRequest],
        schedule: ScaleSchedule,
        times: PhaseTimes,
        on_scale: Callable[[int], None] | None = None,
    ) -> GeneratedBatch:
        """Generate a batch up to its pixels.

        A CPU makes one image after the other: it gains nothing from more (two cores take 1.08 s for the transformer of an
        image of `tiny`, alone and in a batch of four), while its products round differently with the number of rows. So
        an image is the same to the byte in any batch.

        Args:
            batch: valid requests that share `schedule`.
            schedule: token map sizes.
            times: the seconds of each phase are added to it.
            on_scale: called with -1 before the transformer starts, then with each scale's index once its
                work is queued.
        """
        together = len(batch) if self.device.type == "cuda" else 1
        return GeneratedBatch.joined(
            [
                self._generate_together(batch[start : start + together], schedule, times, on_scale)
                for start in range(0, len(batch), together)
            ]
        )

    def _generate_together(
        self,
        batch: Sequence[GenerationRequest],
        schedule: ScaleSchedule,
        times: PhaseTimes,
        on_scale: Callable[[int], None] | None,
    ) -> GeneratedBatch:
        with torch.inference_mode(), fastest_attention(self.device):
            state, policy, truncated = self._sample(batch, schedule, self._policy_factory, times, on_scale)
            pixels = self._timed(times, "decode", lambda: self._decode(state.codes.summed_codes))
        count = range(len(batch))
        return GeneratedBatch(
            pixels,
            truncated=truncated,
            finite=state.finite.tolist(),
            work=[state.history.work(index) for index in count],
            low_entropy_ratio=[policy.low_entropy_ratio(index) for index in count],
            layer_representation_score=[policy.layer_representation_score(index) for index in count],
            pruning_maps=state.history.pruning_maps() if self._spec.policy.pruning_map else None,
        )

    def observe(self, batch: Sequence[GenerationRequest], policy_factory: PolicyFactory) -> BatchRunner:
        """Run the transformer on a batch under another policy than the engine's, for what that policy sees.

        Args:
            batch: valid requests of one scale schedule.
            policy_factory: makes the policy.
        """
        schedule = self.schedule_of(batch[0].h_div_w)
        with torch.inference_mode(), fastest_attention(self.device):
            return self._sample(batch, schedule, policy_factory, PhaseTimes(), None)[0]

    def _sample(
        self,
        batch: Sequence[GenerationRequest],
        schedule: ScaleSchedule,
        policy_factory: PolicyFactory,
        times: PhaseTimes,
        on_scale: Callable[[int], None] | None,
    ) -> tuple[BatchRunner, PruningPolicy, list[bool]]:
        """Encode the text and generate the codes; also tells whose text was cut."""
        prompts, negatives = self._timed(times, "text", lambda: self._encode_text(batch))
        seeds = torch.tensor([request.seed for request in batch], device=self.device)
        policy = policy_factory(BatchContext(schedule, self.model.transformer.sizes.depth, seeds))

        def sample() -> BatchRunner:
            if on_scale is not None:
                on_scale(-1)
            state = self._fresh_state(prompts, negatives, schedule, largest_map(batch[0].h_div_w))
            sample_codes(state, seeds, policy, on_scale)
            return state

        state = self._timed(times, "sample", sample)
        truncated = [
            text.truncated or (negative is not None and negative.truncated)
            for text, negative in zip(prompts, negatives, strict=True)
        ]
        return state, policy, truncated

    def _fresh_state(
        self,
        prompts: Sequence[EncodedText],
        negatives: Sequence[EncodedText | None],
        schedule: ScaleSchedule,
        largest: tuple[int, int],
    ) -> BatchRunner:
        model = self.model
        features = [text.features for text in prompts]
        unconditional = [text.features if text else None for text in negatives]
        rows = text_rows(model.transformer, features, unconditional, guided=self._settings.guided)
        return BatchRunner(
            model.transformer,
            model.transformer.encode_text(rows),
            schedule,
            self._settings,
            largest_map=largest,
            codebook_dim=model.vae.sizes.codebook_dim,
            spatial_patchify=model.vae.sizes.spatial_patchify,
            backend=self.backend,
            count_layers=self._spec.policy.pruning_map,
        )

    def _encode_text(
        self, batch: Sequence[GenerationRequest]
    ) -> tuple[list[EncodedText], list[EncodedText | None]]:
        """Encode each distinct text of a batch once."""
        texts = [request.prompt for request in batch]
        negatives = [request.negative_prompt if self._settings.guided else None for request in batch]
        distinct = list(dict.fromkeys([*texts, *filter(None, negatives)]))
        encoded = dict(zip(distinct, self.model.text_encoder.encode(distinct), strict=True))
        return [encoded[text] for text in texts], [encoded[text] if text else None for text in negatives]

    def _decode(self, codes: Tensor) -> np.ndarray:
        decode = self.model.vae.decode
        chunks = [to_uint8(decode(chunk, self.backend)) for chunk in codes.split(_DECODE_CHUNK)]
        return copy_to_host(torch.cat(chunks)).numpy()

    def _timed(self, times: PhaseTimes, phase: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self._synchronize()
        setattr(times, phase, getattr(times, phase) + time.perf_counter() - start)
        return result

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _flops(self, work: PromptWork) -> float:
        model = self.model
        head = work.head_tokens(self._settings.guides_logits)
        sampled = transformer_flops(model.transformer.sizes, work.counts, work.branches, head)
        return sampled + decoder_flops(model.vae.sizes, work.schedule)

    def describe(self) -> dict[str, Any]:
        """A record of this engine for the run's file: JSON-able."""
        is_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if is_gpu else platform.processor() or "cpu",
            "device_type": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "backend": self.backend.name,
            "backend_reason": self.backend.reason,
            "torch": torch.__version__,
            "preset": self._spec.model.preset,
            "parameters": sum(parameter.numel() for parameter in self.model.transformer.parameters()),
            "resolution": self._spec.resolution,
            "batch_size": min(self.batch_size, self._batch_limit or self.batch_size),
            "out_of_memory": list(self._out_of_memory),
            "load_seconds": round(self._load_seconds, 3),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device) if is_gpu else None,
        }


def _problem(request: GenerationRequest) -> str | None:
    """Why a request cannot be generated, or None."""
    if not isinstance(request.prompt, str):
        return f"the prompt is {type(request.prompt).__name__}, not text"
    if not request.prompt.strip():
        return "the prompt is empty"
    return None
