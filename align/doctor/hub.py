"""Whether the Hugging Face Hub answers."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request

from align.doctor.finding import Finding

PATIENCE = 5.0  # seconds


def look() -> Finding:
    """One request, without a token."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Finding("Hub", "note", "not asked: HF_HUB_OFFLINE is set")
    began = time.monotonic()
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:  # it answers
        pass
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        remedy = "only for models and data of the Hub; set HTTPS_PROXY, or HF_ENDPOINT to a mirror"
        return Finding("Hub", "note", f"{address} cannot be reached: {why}", remedy)
    return Finding("Hub", "ok", f"{address} answers in {time.monotonic() - began:.1f} s")
