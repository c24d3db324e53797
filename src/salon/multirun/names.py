"""How a multirun's jobs are called: after the overrides in which they differ.

A name is a folder's, and a part of later commands (`checkpoint=multirun/NAME/JOB`), so it keeps to
what shells and Hydra read without quotes: `model-df_gan.tiny+seed-1`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

LONGEST = 120  # letters; file systems end at 255 bytes


def job_name(swept: str, overrides: Iterable[str], number: int) -> str:
    """Of the overrides whose keys are in `swept`; where there are none, the job's number.

    What had to be clipped, or was spelled with other letters, ends in a hash of the whole.
    """
    keys = swept.split(",")
    said = [word.partition("=") for word in overrides]
    told = [(key.lstrip("+~"), value) for key, _, value in said]
    whole = "+".join(f"{key}-{value}" for key, value in told if key.partition("@")[0] in keys)
    plain = whole.replace("/", ".")
    safe = re.sub(r"[^\w.+-]+", "-", plain, flags=re.ASCII)
    if safe == plain and len(safe) <= LONGEST:
        return safe or str(number)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{safe[: LONGEST - 9].strip('-')}-{digest}"


def remember_swept(config: DictConfig) -> None:
    """Which keys a multirun's command, or its sweeper's `params`, gives several values.

    The sweep as a whole knows, and no job does. So it is kept where Hydra keeps `now`: in the cache
    of the sweep's config, which every job gets, in whatever process.
    """
    OmegaConf.get_cache(config)[SWEPT][()] = ",".join(one.key_or_group for one in swept(config))


def swept(config: DictConfig) -> list[Override]:
    """What has several values: of the sweeper's config, and of the command line, which wins."""
    params = config.hydra.sweeper.get("params") or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(words)
    last = {one.key_or_group: one for one in parsed}
    return [one for one in last.values() if one.is_sweep_override()]


SWEPT = "salon.swept"
OmegaConf.register_new_resolver(SWEPT, lambda: "", use_cache=True, replace=True)
OmegaConf.register_new_resolver("salon.job_name", job_name, replace=True)
