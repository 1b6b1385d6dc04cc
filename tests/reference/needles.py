"""What gives samples away, in every form that a program might write their numbers in."""

import base64
import re

import numpy as np
from numpy.typing import NDArray


def needles(x: NDArray[np.float64]) -> set[bytes]:
    """Return what gives a sample's numbers away: bytes, hexadecimal, base64, decimal digits."""
    # Six decimals, as any printed number begins that is written with seven or more.
    found = {f"{number:.12f}"[:-6].encode() for number in np.abs(x).ravel()}
    for kind in ("<f8", ">f8"):
        found |= {number.tobytes() for number in x.astype(kind).ravel()}
    for kind in ("<f8", ">f8", "<f4", ">f4"):
        for row in x.astype(kind):
            content = row.tobytes()
            found |= {content, content.hex().encode(), content.hex().upper().encode()}
            # Base64 looks different at each of three offsets; its ends depend on the neighbours.
            found |= {base64.b64encode(b"\0" * skip + content)[4:-4] for skip in range(3)}
    return found


def printed(x: NDArray[np.float64]) -> re.Pattern[bytes]:
    """Return what finds three neighbours as torch and numpy print tensors: with four decimals."""
    runs = [
        r"[\s,]+".join(
            f"{number:.4f}"[:-1].replace(".", r"\.") + r"\d" for number in row[i : i + 3]
        )
        for row in x
        for i in range(x.shape[1] - 2)
    ]
    return re.compile("|".join(runs).encode())
