"""Whether somebody is logged in to W&B, without asking W&B."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

log = logging.getLogger(__name__)


def logged_in() -> bool:
    """Whether W&B would find a key: in the environment, or in the netrc file under the server's name. The key itself is not looked at."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not path.is_file():
        return False
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except netrc.NetrcParseError as error:
        log.info("%s cannot be read (%s): taken as not logged in to W&B", path, error)
        return False
