"""Which script and which language a text is in, as far as a guard has to know: by letters and by common words.

another(asked, text, …) → what is wrong with an answer in another script or language than its prompt, in words
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict

from assay.rollout.ordinary import mean, ordinary

_RANGES = {
    "Latin": r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "Greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": r"\u0400-\u052f",
    "Armenian": r"\u0530-\u058f",
    "Hebrew": r"\u0590-\u05ff",
    "Arabic": r"\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "Indic": r"\u0900-\u0dff",
    "Thai or Lao": r"\u0e00-\u0eff",
    "Georgian": r"\u10a0-\u10ff",
    "Ethiopic": r"\u1200-\u137f",
    "Hangul": r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3",
    "Kana": r"\u3041-\u30ff\u31f0-\u31ff",
    "Han": r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
}
_SCRIPTS = {script: re.compile(f"[{letters}]") for script, letters in _RANGES.items()}
_LATIN = re.compile("[A-Za-z]")

WORDS = {
    "English": "the and of to is that it for you with this are be as have not what in i your they was",
    "German": "der das und ist nicht ein eine zu den mit für auf sich auch ich sie es wird dem von im er als "
    "des oder bei nach wie mir über etwas bitte wir kann gibt",
    "French": "le la les et est des une un dans qui pas vous je sur avec ce du que au aux "
    "ou mais nous il elle cette sont comment être moi",
    "Spanish": "el la los las y es una un en para que por con se su como más está "
    "del lo pero sobre esta qué cómo muy fue",
    "Italian": "il la gli è una un che di del della più si sono con dei nel ed alla anche questo perché mi cosa nella",
    "Portuguese": "os e é uma um para que não com da por mais se em do ao como dos você também foi muito sobre mas",
    "Dutch": "het een en van niet dat op te voor met zijn aan ook ik je wat hoe wordt bij naar deze maar kan",
    "Swedish": "och att det är som en på för med den av jag till har inte",
    "Polish": "się nie jest że jak od przez dla oraz po tym są jego może",
    "Turkish": "ve bir bu için ile çok gibi daha olarak olan sonra kadar",
    "Indonesian": "yang dan untuk dengan ini itu dari tidak pada adalah ke dalam",
    "Vietnamese": "và là của có không một được cho trong những người các với này",
}
"""Some of the commonest words of languages in Latin letters; words that English has too are left out."""
_SPOKEN_IN = defaultdict[str, list[str]](list)
for _language, _words in WORDS.items():
    for _common in _words.split():
        _SPOKEN_IN[_common].append(_language)
HITS, FEW, SHARE = 5, 2, 0.2
"""Common words that tell a language, those that tell a prompt's, and their share of all words."""
LEAD = 1.5
"""How much more of them than of any other language's."""
ENGLISH_LETTERS, ENGLISH_SPELLING = 12, 1.0
"""Letters from which a prompt is in some language, and the spelling above which it is English without common words."""
SCRIPT_LETTERS, SCRIPT_SHARE = 24, 0.25
"""Letters of a script that the prompt has not, and their share, from which the answer is in the wrong one."""
CACHED = 64
"""Texts whose answer is kept: several checks ask about one text, and many answers have one prompt."""

_WORD = re.compile(r"[^\W\d_]+")
_ANOTHER = re.compile(
    r"translat|language|übersetz|traduc|traduz|traduis|tradui|vertaal|przetłumacz|перев|翻译|翻譯|訳|번역|ترجم|dịch"
    r"|\b(?:english|german|deutsch|french|français|spanish|español|italian|italiano|portugu|dutch|swedish|norwegian"
    r"|danish|finnish|polish|czech|russian|ukrainian|greek|turkish|arabic|hebrew|hindi|urdu|bengali|tamil|telugu|chinese"
    r"|mandarin|cantonese|japanese|korean|vietnamese|thai|indonesian|malay|tagalog|filipino|swahili|latin|sanskrit|persian"
    r"|farsi|romanian|hungarian|bulgarian|serbian|croatian|gaelic|irish|welsh|hawaiian|maori|yoruba|zulu|esperanto"
    r"|icelandic|englisch|anglais|inglés|inglese|inglês|engels)|на английск|英语|英語|영어",
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=CACHED)
def scripts(text: str) -> Counter[str]:
    """Letters of each script."""
    if text.isascii():
        return Counter({"Latin": len(_LATIN.findall(text))})
    return Counter({script: count for script, pattern in _SCRIPTS.items() if (count := len(pattern.findall(text)))})


@functools.lru_cache(maxsize=CACHED)
def language(text: str, *, hits: int = HITS) -> str | None:
    """The language of a text in Latin letters, where so many of its commonest words tell."""
    words = _WORD.findall(text.lower())
    found = Counter(name for word in words if word in _SPOKEN_IN for name in _SPOKEN_IN[word])
    (best, most), (_, next_most) = (*found.most_common(2), ("", 0), ("", 0))[:2]
    return best if most >= max(hits, SHARE * len(words)) and most >= LEAD * next_most else None


@functools.lru_cache(maxsize=CACHED)
def speaks_of_languages(prompt: str) -> bool:
    """Whether a prompt names a language or asks for a translation: any language may be right then."""
    return bool(_ANOTHER.search(prompt))


def language_of(asked: str) -> str | None:
    """The language of a prompt, by its common words, or by its letters where they are as in English."""
    known, letters = language(asked, hits=FEW), scripts(asked)
    if known or letters["Latin"] < ENGLISH_LETTERS or 2 * letters["Latin"] < letters.total():
        return known
    return "English" if mean(ordinary().spelling(asked)) > ENGLISH_SPELLING else None


def expects_english(asked: str) -> bool:
    """Whether an answer should be English: the prompt is, as far as it is long enough to be anything."""
    if speaks_of_languages(asked):
        return False
    return language_of(asked) == "English" or scripts(asked).total() < ENGLISH_LETTERS


def another(asked: str, text: str, *, prose: str) -> str | None:
    """In which other script or language than its prompt an answer is, unless the prompt speaks of languages.

    `prose`: what is left of the answer without code, which is in no language.
    """
    if speaks_of_languages(asked):
        return None
    here, there = scripts(text), scripts(asked)
    total = sum(here.values())
    for script, count in here.items():
        if there[script] < 3 and count >= max(SCRIPT_LETTERS, SCRIPT_SHARE * total) and sum(there.values()) >= 3:
            return f"{count} of {total} letters are {script}, and the prompt has none"
    spoken, wanted = language(prose), language_of(asked)
    if spoken and wanted and spoken != wanted:
        return f"the answer is in {spoken}, and the prompt in {wanted}"
    return None
