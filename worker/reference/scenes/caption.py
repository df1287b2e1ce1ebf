"""Captions: seeded wording over the scene's own facts, so that every claim is true.

A phrase that counts ("two red cubes", "a cone") names every object of the scene with this shape and, where it is
said, this colour. Relations are stated only between objects that their phrases single out, and only with margin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .dice import Dice
from .layout import is_before, is_beside, is_over, object_box
from .phrases import (
    MATERIAL_WORDS,
    NOUNS,
    NUMBERS,
    article,
    backdrop_phrase,
    colour_words,
    floor_phrase,
    listing,
)
from .prompts import task_prompt
from .spec import ObjectSpec, SceneSpec

_OPENINGS: Final = ("a photo of", "a picture of", "an image of", "a 3d render of", "a rendering of")
_DEPTH_MARGIN: Final = 1.1
_RELATION_WORDS: Final = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "in front of": ("in front of",),
    "behind": ("behind",),
    "on top of": ("on top of", "on"),
}


@dataclass(frozen=True, slots=True)
class _Detail:
    """What one caption says about its objects."""

    colour: bool
    pattern: bool
    material: bool
    size: bool
    synonyms: bool
    digits: bool
    """Whether counts are written as figures."""


@dataclass(frozen=True, slots=True)
class _Group:
    """All objects of one shape, or of one shape and colour."""

    members: tuple[int, ...]
    things: tuple[ObjectSpec, ...]

    def agree(self, get: Callable[[ObjectSpec], object]) -> bool:
        """Whether all members share a property."""
        return len({get(thing) for thing in self.things}) == 1


def caption(scene: SceneSpec, seed: int) -> str:
    """A caption of the scene; other seeds give other wordings, lengths and details, all of them true."""
    dice = Dice(f"caption/{seed}")
    if scene.task is not None and dice.chance(0.4):
        return task_prompt(scene).text
    form = dice.weighted(("short", "medium", "long"), (0.3, 0.4, 0.3))
    few = len(scene.objects) <= 4
    detail = _Detail(
        colour=not (few and dice.chance(0.1)),
        pattern=dice.chance(0.35 if form == "short" else 0.7),
        material=dice.chance(0.25 if form == "short" else 0.55),
        size=dice.chance(0.5),
        synonyms=dice.chance(0.3),
        # beside painted digits a figure could be read as one of them
        digits=dice.chance(0.2) and all(thing.digit is None for thing in scene.objects),
    )
    groups = _groups(scene, detail)
    if form == "short":
        return _short(dice, scene, groups, detail)
    if form == "medium":
        return _medium(dice, scene, groups, detail)
    return _long(dice, scene, groups, detail)


def _groups(scene: SceneSpec, detail: _Detail) -> list[_Group]:
    found: dict[tuple[str, str], list[int]] = {}
    for index, thing in enumerate(scene.objects):
        found.setdefault((thing.shape, thing.colour if detail.colour else ""), []).append(index)
    return [_Group(tuple(rows), tuple(scene.objects[row] for row in rows)) for rows in found.values()]


def _size_counts(scene: SceneSpec) -> bool:
    """Size words need a scene with both sizes to compare, or a single object."""
    sizes = {thing.size for thing in scene.objects}
    return len(scene.objects) == 1 or {"small", "large"} <= sizes


def _noun(dice: Dice, group: _Group, detail: _Detail) -> str:
    words = NOUNS[group.things[0].shape]
    return (dice.pick(words) if detail.synonyms else words[0])[1 if len(group.members) > 1 else 0]


def _phrase(dice: Dice, scene: SceneSpec, group: _Group, detail: _Detail, *, definite: bool = False) -> str:
    """Noun phrase of a group: "a small shiny red cube with the number 3", "two cones"."""
    first = group.things[0]
    before: list[str] = []
    after: list[str] = []
    if detail.size and first.size != "medium" and _size_counts(scene) and group.agree(lambda t: t.size):
        before.append(first.size)
    if detail.material and group.agree(lambda t: t.material):
        word = dice.pick(MATERIAL_WORDS[first.material])
        (after if first.material in {"metal", "glass"} else before).append(word)
    same_pattern = group.agree(lambda t: (t.pattern, t.accent))
    if detail.colour:
        before.append(colour_words(dice, first, pattern=detail.pattern and same_pattern))
    elif detail.pattern and same_pattern and first.pattern != "plain":
        before.append(first.pattern)
    words = " ".join((*before, *after, _noun(dice, group, detail)))
    count = len(group.members)
    if definite:
        return f"the {words}"
    digits = _digits(dice, group)
    if count == 1:
        return article(words) + digits
    return f"{count if detail.digits else NUMBERS[count]} {words}{digits}"


def _digits(dice: Dice, group: _Group) -> str:
    shown = [thing.digit for thing in group.things]
    known = [digit for digit in shown if digit is not None]
    if len(known) < len(shown) or not dice.chance(0.85):
        return ""
    word = dice.pick(("number", "digit"))
    if len(known) == 1:
        return f" with the {word} {known[0]}"
    if len(set(known)) == 1:
        return f" with the {word} {known[0]} on each"
    return f" with the {word}s {listing([str(digit) for digit in known])}"


def _named(dice: Dice, scene: SceneSpec, groups: list[_Group], detail: _Detail, most: int) -> str:
    """All groups, or some of them and a word that there are more."""
    order = dice.shuffled(groups) if scene.relation is None else groups
    parts = [_phrase(dice, scene, group, detail) for group in order[:most]]
    if len(groups) <= most:
        return listing(parts)
    rest = sum(len(group.members) for group in order[most:])
    more = "one more object" if rest == 1 else dice.pick(("other objects", f"{NUMBERS[rest]} more objects"))
    return listing([*parts, more])


def _floats(scene: SceneSpec) -> bool:
    return any(t.support is None and t.position[1] - t.scale * 1.4 > 0.4 for t in scene.objects)


def _ground(dice: Dice, scene: SceneSpec) -> str:
    word = "over" if _floats(scene) else "on"
    return f"{word} {floor_phrase(dice, scene.floor)}"


def _short(dice: Dice, scene: SceneSpec, groups: list[_Group], detail: _Detail) -> str:
    relation = _relations(dice, scene, groups, detail)
    if len(scene.objects) == 2 and relation and dice.chance(0.6):
        words = relation[0].indefinite
    else:
        words = _named(dice, scene, groups, detail, 4)
    return f"{dice.pick(_OPENINGS)} {words}" if dice.chance(0.5) else words


def _medium(dice: Dice, scene: SceneSpec, groups: list[_Group], detail: _Detail) -> str:
    words = _short(dice, scene, groups, detail)
    places = []
    if dice.chance(0.75):
        places.append(_ground(dice, scene))
    if not places or dice.chance(0.5):
        places.append(backdrop_phrase(dice, scene.backdrop))
    return f"{words} {' '.join(places)}" if dice.chance(0.7) else f"{words}, {', '.join(places)}"


def _long(dice: Dice, scene: SceneSpec, groups: list[_Group], detail: _Detail) -> str:
    shown = _named(dice, scene, groups, detail, dice.integer(4, 8))
    ground, back = _ground(dice, scene), backdrop_phrase(dice, scene.backdrop)
    opening = dice.pick(("{opening} {shown} {ground}.", "{shown} {ground}, {back}.", "{shown} {ground}."))
    sentences = [opening.format(opening=dice.pick(_OPENINGS), shown=shown, ground=ground, back=back)]
    sentences += [
        f"{link.definite}." for link in _relations(dice, scene, groups, detail)[: dice.integer(1, 3)]
    ]
    if back not in sentences[0]:
        sentences.append(dice.pick((f"the scene is set {back}.", f"it is seen {back}.")))
    if dice.chance(0.5):
        sentences.append(_light(dice, scene))
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _light(dice: Dice, scene: SceneSpec) -> str:
    side = scene.light.side
    tone = "" if scene.light.warmth == "neutral" else f"{scene.light.warmth} "
    return dice.pick((f"{tone}light comes from the {side}.", f"{tone}light falls in from the {side}."))


@dataclass(frozen=True, slots=True)
class _Link:
    """A stated relation, as a phrase and as a clause."""

    indefinite: str
    definite: str


def _relations(dice: Dice, scene: SceneSpec, groups: list[_Group], detail: _Detail) -> list[_Link]:
    """Some true relations between objects that are alone in their groups."""
    single = [group for group in dice.shuffled(groups) if len(group.members) == 1][:4]
    links = []
    for number, first in enumerate(single):
        for second in single[number + 1 :]:
            word = relation_between(scene, first.members[0], second.members[0])
            if word is None:
                continue
            words = dice.pick(_RELATION_WORDS[word])
            one, two = (_phrase(dice, scene, group, detail) for group in (first, second))
            the_one, the_two = (
                _phrase(dice, scene, group, detail, definite=True) for group in (first, second)
            )
            links.append(_Link(f"{one} {words} {two}", f"{the_one} is {words} {the_two}"))
    return links


def relation_between(scene: SceneSpec, first: int, second: int) -> str | None:
    """What objects[first] clearly is to objects[second] as seen from the camera, or None."""
    one, two = scene.objects[first], scene.objects[second]
    if one.support == second:
        return "on top of"
    here, there = object_box(scene.camera, one), object_box(scene.camera, two)
    if two.support == first:
        return "below" if is_over(there, here) else None
    ordered = (
        ("left of", is_beside(here, there)),
        ("right of", is_beside(there, here)),
        ("in front of", is_before(here, there, _DEPTH_MARGIN)),
        ("behind", is_before(there, here, _DEPTH_MARGIN)),
        ("above", _hovers(one) and is_over(here, there)),
        ("below", _hovers(two) and is_over(there, here)),
    )
    return next((name for name, holds in ordered if holds), None)


def _hovers(thing: ObjectSpec) -> bool:
    """Whether it is in the air, by a height that no lying or standing pose explains."""
    return thing.support is None and thing.position[1] > 1.5 * thing.scale
