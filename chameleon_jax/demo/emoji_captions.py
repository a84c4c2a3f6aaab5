"""Written captions for the emoji of `emoji-datasource`, from their names, short names, category and skin tones.

A name such as `FAMILY: MAN, WOMAN, BOY` becomes a noun phrase first, and every phrasing is built from that phrase.
"""

from __future__ import annotations

import re

SKIN_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
GROUPS = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals and plants",
    "Food & Drink": "food and drinks",
    "Travel & Places": "places and vehicles",
    "Activities": "games and celebrations",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
    "Component": "skin tones",
}
_COUNTED = ("two ", "three ", "women ", "men ", "people ", "twelve ")


def captions(entry: dict, tones: str = "") -> list[str]:
    """Different captions of one emoji, the plainest first; the second one names the group and exists for every emoji.

    `entry` is a record of emoji.json, `tones` a key of its `skin_variations` ("1F3FB" or "1F3FB-1F3FF"), or empty.
    """
    name = _name(entry["name"])
    tone = _tone(tones)
    thing = with_article(name) + tone
    group = GROUPS.get(entry["category"], "emoji")
    made = [thing, f"{thing}, one of the {group}", f"an emoji of {thing}"]
    aliases = [re.sub(r"[-_]", " ", alias) for alias in entry["short_names"]]
    for alias in aliases:
        if alias != name and not alias.startswith(("flag ", "skin tone")):
            made.append(f"{thing}, also called {alias}")
    kind = re.sub(r"[-_]", " ", entry["subcategory"]).replace("&", "and")
    made.append(f"{kind}: {name}{tone}")
    return list(dict.fromkeys(made))


def with_article(name: str) -> str:
    """`name` as a noun phrase: "an eye", "the flag of peru"; plurals, counted things and activities stay bare."""
    if name.startswith(("flag of ", "family of ", "kiss of ", "couple with heart of ")):
        return ("the " if name.startswith("flag") else "a ") + name
    last = re.split(r" (?:with|of|in|on|and|without) ", name)[0].split(" ")[-1]
    one_person = re.match(r"(happy )?(person|man|woman|face) ", name)
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is", "as")) and not one_person
    activity = " " not in name and name.endswith("ing") and name not in ("ring", "wing")
    if plural or activity or name.startswith(_COUNTED):
        return name
    vowel = name[0] in "aeiou" and not name.startswith(("uni", "us", "one", "eu"))
    return ("an " if vowel else "a ") + name


def _name(name: str) -> str:
    name = re.sub(r"\b(wo)?(man|men)s ", r"\1\2's ", name.lower().replace("oclock", "o'clock"))
    if flag := re.fullmatch(r"(.+) flag", name):
        named = not flag[1].startswith(("chequered", "rainbow", "transgender", "white", "pirate", "waving"))
        return f"flag of {flag[1]}" if named else name
    if fitzpatrick := re.fullmatch(r"emoji modifier fitzpatrick type-(\S+)", name):
        tone = dict(zip(("1-2", "3", "4", "5", "6"), SKIN_TONES.values(), strict=True))[fitzpatrick[1]]
        return f"{tone} skin tone"
    if hair := re.fullmatch(r"(man|woman|person): (.+)", name):
        return f"{hair[1]} with {hair[2]}"
    if group := re.fullmatch(r"(family|kiss|couple with heart): (.+)", name):
        *members, last = group[2].split(", ")
        listed = (", ".join(with_article(m) for m in members) + " and " if members else "") + with_article(last)
        return f"{group[1]} of {listed}"
    return name.replace(": ", " ")


def _tone(tones: str) -> str:
    names = [SKIN_TONES[tone] for tone in tones.split("-") if tone]
    if not names:
        return ""
    return f" with {names[0]} skin tone" if len(set(names)) == 1 else f" with {' and '.join(names)} skin tones"
