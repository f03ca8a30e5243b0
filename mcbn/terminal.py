"""Text for terminals that cannot show every character."""

from __future__ import annotations

import sys
import unicodedata

_PLAIN = {
    "±": "+/-",
    "–": "-",
    "—": "-",
    "−": "-",
    "→": "->",
    "×": "x",
    "·": "*",
    "…": "...",
    "≈": "~",
    "≤": "<=",
    "≥": ">=",
    "°": " deg",
    "λ": "lambda",
    "τ": "tau",
    "ß": "ss",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "μ": "mu",
    "σ": "sigma",
}


def stdout_encoding() -> str:
    """The encoding of the stream that ``print`` writes to; UTF-8 if it has none."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def showable(text: str, encoding: str) -> str:
    """The text with substitutes for the characters that this encoding lacks.

    A program that has computed for an hour must not fail when it prints a ±.

    Example:
        >>> showable("1.2 ± 0.3 Größe", "ascii"), showable("1.2 ± 0.3 Größe", "utf-8")
        ('1.2 +/- 0.3 Grosse', '1.2 ± 0.3 Größe')
    """

    def shown(sign: str) -> str:
        try:
            sign.encode(encoding)
        except UnicodeEncodeError:
            parts = unicodedata.normalize("NFKD", _PLAIN.get(sign, sign))
            letters = "".join(part for part in parts if not unicodedata.combining(part))
            return letters.encode(encoding, "replace").decode(encoding)
        return sign

    return "".join(map(shown, text))
