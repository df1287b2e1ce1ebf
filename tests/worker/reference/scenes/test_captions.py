"""Reads captions back with a parser of its own and holds every claim against the scene and its picture."""

import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from toprovar_batch.worker.reference.scenes import caption, ground_truth, pack, render, sample_scenes
from toprovar_batch.worker.reference.scenes.vocab import COLOUR_NAMES, MATERIALS, PATTERNS

SINGULAR = {
    "sphere": "sphere", "ball": "sphere", "cube": "cube", "block": "cube", "cylinder": "cylinder", "cone": "cone",
    "ring": "ring", "donut": "ring", "torus": "ring", "capsule": "capsule", "pill": "capsule", "pyramid": "pyramid",
    "diamond": "diamond", "octahedron": "diamond", "star": "star", "cage": "cage", "wire frame": "cage",
    "fence": "fence", "lattice": "lattice", "wire grid": "lattice", "pole": "pole", "post": "pole", "sign": "sign",
    "card": "card",
}  # fmt: skip
PLURAL = {"tori": "ring", "octahedra": "diamond"} | {f"{k}s": v for k, v in SINGULAR.items()}
NOUNS = SINGULAR | PLURAL
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
COUNTS = {"a": 1, "an": 1, "the": 1} | {w: i for i, w in enumerate(NUMBERS)} | {str(i): i for i in range(13)}
MATERIAL_WORDS = {"glossy": "shiny", "metallic": "metal"} | {name: name for name in MATERIALS}
ADJECTIVES = {*COLOUR_NAMES, *MATERIAL_WORDS, *PATTERNS, "small", "large", "and"}
PHRASE = re.compile(
    rf"\b({'|'.join(COUNTS)})((?: (?:{'|'.join(ADJECTIVES)}))*) ({'|'.join(sorted(NOUNS, key=len, reverse=True))})\b"
    r"(?: with the (?:number|digit)s? (\d(?:(?:, | and )\d)*)( on each)?)?"
)
LINK = re.compile(
    r"^(?: is)? (?:to the )?(left of|right of|above|over|below|under|in front of|behind|on top of|on) $"
)
FLOOR_WORDS = {
    "wood": "wooden floor|plank", "grass": "grass|lawn", "sand": "sand", "marble": "marble floor", "tiles": "tile",
    "cobblestone": "cobblestone", "checker": "checkered floor", "grid": "grid lines", "plain": "floor",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    count: int
    words: tuple[str, ...]
    shape: str
    digits: tuple[int, ...]
    definite: bool
    start: int
    end: int

    def matches(self, thing) -> bool:
        patterns = [w for w in self.words if w in PATTERNS]
        colours = [w for w in self.words if w in COLOUR_NAMES]
        material = [MATERIAL_WORDS[w] for w in self.words if w in MATERIAL_WORDS]
        sizes = [w for w in self.words if w in {"small", "large"}]
        return (
            thing.shape == self.shape
            and (not colours or thing.colour == colours[0])
            and (len(colours) < 2 or thing.accent == colours[1])
            and all(thing.pattern == word for word in patterns)
            and all(thing.material == word for word in material)
            and all(thing.size == word for word in sizes)
        )


def read(text: str) -> list[Claim]:
    claims = []
    for found in PHRASE.finditer(text):
        number, words, noun, digits, each = found.groups()
        count = COUNTS[number]
        shown = tuple(int(digit) for digit in re.findall(r"\d", digits or ""))
        assert (noun in PLURAL) == (count > 1), text
        claims.append(
            Claim(
                count,
                tuple(words.split()),
                NOUNS[noun],
                shown * (count if each else 1),
                number == "the",
                *found.span(),
            )
        )
    return claims


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_count_colour_material_pattern_size_and_digit_is_true(split: str) -> None:
    seen = 0
    for index, scene in enumerate(sample_scenes(21, 1500, split)):
        text = caption(scene, index).lower()
        claims = read(text)
        assert claims, text
        for claim in claims:
            fitting = [thing for thing in scene.objects if claim.matches(thing)]
            assert len(fitting) == claim.count, (text, claim)
            if claim.digits:
                assert sorted(thing.digit for thing in fitting) == sorted(claim.digits), text
            seen += 1
        named = sum(claim.count for claim in claims if not claim.definite)
        if "more object" not in text and "other object" not in text:
            assert named == len(scene.objects), text
        elif more := re.search(r"(\w+) more objects?", text):
            assert named + COUNTS[more[1]] == len(scene.objects), text
    assert seen > 3000


def test_every_floor_backdrop_and_light_that_is_named_is_the_scenes_own() -> None:
    marks = {"brick wall": "bricks", "sunset": "sunset", "skyline": "city", "city": "city", "mountains": "mountains",
             "night": "night", "starry": "night", "cloud": "clouds", "studio": "studio", "background": "studio",
             "dots": "dots", "dotted wall": "dots", "stripes": "wallpaper", "striped wallpaper": "wallpaper",
             "clear blue sky": "sky"}  # fmt: skip
    for index, scene in enumerate(sample_scenes(22, 1500)):
        text = caption(scene, index).lower()
        for words, kind in marks.items():
            assert words not in text or scene.backdrop.kind == kind, text
        for kind, words in FLOOR_WORDS.items():
            assert kind == "plain" or not re.search(words, text) or scene.floor.kind == kind, text
        if " light " in text and (side := re.search(r"from the (left|right)", text)):
            assert side[1] == scene.light.side, text
        assert "warm light" not in text or scene.light.warmth == "warm"


def test_stated_relations_hold_in_the_picture() -> None:
    stated = 0
    pool = [scene for scene in sample_scenes(23, 260) if len(scene.objects) >= 2][:90]
    result = render(pack(pool), (96, 96), supersample=1)
    for row, scene in enumerate(pool):
        truths = ground_truth(scene, result, row)
        for seed in range(6):
            text = caption(scene, seed).lower()
            claims = read(text)
            for first, second in pairwise(claims):
                link = LINK.match(text[first.end : second.start])
                if link is None:
                    continue
                one, two = (
                    next(i for i, t in enumerate(scene.objects) if c.matches(t)) for c in (first, second)
                )
                assert holds(link[1], scene, truths, one, two), (text, truths)
                stated += 1
    assert stated > 60


def holds(word: str, scene, truths, one: int, two: int) -> bool:
    a, b = truths[one].box, truths[two].box
    right, down = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    if word in {"in front of", "behind"}:
        return (truths[one].depth_order < truths[two].depth_order) == (word == "in front of")
    if word in {"on", "on top of"}:
        return scene.objects[one].support == two and down < -4
    return {
        "left of": -right,
        "right of": right,
        "above": -down,
        "over": -down,
        "below": down,
        "under": down,
    }[word] > 3


def test_wordings_vary_and_the_same_seed_repeats() -> None:
    scene = sample_scenes(24, 1)[0]
    texts = [caption(scene, seed) for seed in range(60)]
    assert texts == [caption(scene, seed) for seed in range(60)]
    lengths = torch.tensor([len(text.split()) for text in texts])
    assert len(set(texts)) > 25
    assert lengths.max() >= 3 * lengths.min()
