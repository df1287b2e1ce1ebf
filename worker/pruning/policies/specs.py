"""The `policy` of a job: which rule prunes, and its settings. `docs/pruning.md` explains them.

Scales are counted from 0, as everywhere in the code and the data.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from toprovar_batch.worker.spec_base import FrozenSpec

Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Restoration = Literal["identity", "cached"]
Saliency = Literal["attn_entropy", "bit_uncertainty", "code_detail"]


class PolicyBase(FrozenSpec):
    """What every policy takes."""

    packs_tokens: ClassVar[bool] = False
    """Whether some tokens of a scale may run while others of the same rows do not."""

    pruning_map: bool = Field(False, description="write which tokens ran into the dataset")


class TokenPolicyBase(PolicyBase):
    """What every policy takes that chooses tokens."""

    packs_tokens: ClassVar[bool] = True

    conditional_from: int | None = Field(
        None, ge=1, description="scales from this one on run without guidance; null: none does"
    )


class DenseSpec(PolicyBase):
    """Every token runs in every layer."""

    name: Literal["dense"] = "dense"


class ToprovarSpec(TokenPolicyBase):
    """ToProVAR: scales, layers and tokens by the entropy of their attention.

    With `layer_threshold` 0 every layer counts as Detail, and Eq. 6 alone decides.
    """

    name: Literal["toprovar"] = "toprovar"
    scale_pruning: bool = Field(True, description="false: pruning starts after the representative scale")
    layer_pruning: bool = Field(
        True, description="Global layers run whole; false: every layer is Detail, R = 1"
    )
    token_pruning: bool = Field(True, description="false: what is not kept whole is skipped")
    depth_threshold: Ratio = Field(0.6, description="tau of Eq. 3")
    threshold_direction: Literal["at_least", "at_most"] = "at_most"
    representative_scale: int | None = Field(None, ge=1, description="null: scale 8 of 13, in proportion")
    beta: NonNegative = Field(0.003, description="of Eq. 4")
    layer_threshold: Ratio = Field(0.5, description="R below it: Global")
    a_min: Ratio = Field(0.0, description="of Eq. 6")
    a_max: NonNegative = Field(0.8, description="of Eq. 6")
    normalisation: Literal["mean_one", "literal"] = "mean_one"
    saliency: Saliency = "attn_entropy"
    selection: Literal["top_count", "draw"] = "top_count"
    keep_ratio_floor: Ratio = Field(
        0.01, description="fraction of a pruned layer's tokens that is always kept"
    )
    restoration: Restoration = "cached"
    code_layer_fraction: Ratio = Field(
        0.0, description="a token that ran in a smaller fraction of the layers adds no codes"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.scale_pruning or self.layer_pruning or self.token_pruning):
            raise ValueError(
                "scale_pruning, layer_pruning and token_pruning are all false, which prunes nothing; use policy: dense"
            )
        if self.a_max < self.a_min:
            raise ValueError(f"a_max, {self.a_max:g}, is below a_min, {self.a_min:g}; raise it")
        return self


class FastvarSpec(TokenPolicyBase):
    """FastVAR: two late scales run the tokens farthest from the mean token, the scales after them are skipped."""

    name: Literal["fastvar"] = "fastvar"
    keep_ratio: tuple[Ratio, ...] = Field(
        (0.6, 0.5), min_length=1, description="of the scales before the skipped ones"
    )
    skipped_scales: int = Field(2, ge=0, description="last scales that are skipped")
    first_layer: int | None = Field(None, ge=0, description="null: 3 of 32, in proportion")
    last_layer: int | None = Field(None, ge=0, description="null: 27 of 32, in proportion")
    restoration: Restoration = "cached"


class SkipvarSpec(PolicyBase):
    """SkipVAR: late scales are skipped or run without the unconditional branch, by an early scale's detail."""

    name: Literal["skipvar"] = "skipvar"
    decision_scale: int | None = Field(None, ge=0, description="null: scale 6 of 13, in proportion")
    late_scales: int = Field(3, ge=1, description="last scales that the decision is about")
    skip_below: Ratio = Field(
        0.1, description="less high-frequency energy than this: the late scales are skipped"
    )
    conditional_below: Ratio = Field(0.2, description="less than this: they run the conditional branch alone")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.conditional_below < self.skip_below:
            raise ValueError(
                f"conditional_below, {self.conditional_below:g}, is below skip_below, {self.skip_below:g}; raise it"
            )
        return self


class DetailSpec(TokenPolicyBase):
    """Our own: late scales run where the picture has detail, and without guidance; elsewhere nothing is added."""

    name: Literal["detail"] = "detail"
    first_scale: int | None = Field(None, ge=1, description="null: scale 9 of 13, in proportion")
    detail_threshold: NonNegative = Field(
        0.2, description="least detail of a token that runs; 1 is the energy of the codes of one scale"
    )
    keep_ratio_floor: Ratio = Field(
        0.02, description="a prompt of whose tokens fewer would run skips that scale and the later ones"
    )
    conditional_from: int | None = Field(
        None,
        ge=1,
        description="scales from this one on run without guidance (none: as many as there are); null: scale 8 of 13, in proportion",
    )


class FixedExitSpec(PolicyBase):
    """Every scale from `start_scale` on is skipped."""

    name: Literal["fixed_exit"] = "fixed_exit"
    start_scale: int | None = Field(None, ge=1, description="null: the last three scales")


class ReplaySpec(TokenPolicyBase):
    """A recorded pattern of work, whatever the prompt: keep ratios by scale and layer, tokens drawn by seed.

    `plan` has one list for each of the last scales, with one keep ratio a layer.
    """

    name: Literal["replay"] = "replay"
    preset: Literal["paper-2b"] | None = None
    plan: tuple[tuple[Ratio, ...], ...] | None = Field(None, min_length=1)
    restoration: Restoration = "identity"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.preset is None) == (self.plan is None):
            raise ValueError("give one of preset (paper-2b) and plan")
        return self


PolicySpec = Annotated[
    DenseSpec | ToprovarSpec | FastvarSpec | SkipvarSpec | DetailSpec | FixedExitSpec | ReplaySpec,
    Field(discriminator="name"),
]
