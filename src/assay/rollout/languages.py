"""Which script and which language a text is in, as far as a guard has to know: by letters and by common words."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict

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
