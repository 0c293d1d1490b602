"""Where data files are: the data directory, and the cache of decoded images."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

DATA_VARIABLE = "OPTIGRAD_DATA"
_APPLICATION = "optigradtrust"


@dataclass(frozen=True)
class Source:
    """Where a loader looks for its files.

    Attributes:
        directory: The data directory.
        download: Fetch missing files. Makes no difference to the data, and so none to equality.
    """

    directory: Path
    download: bool = field(default=False, compare=False)


def data_directory(given: str | Path | None = None) -> Path:
    """The data directory: the one given, else ``$OPTIGRAD_DATA``, else one in the user's cache directory."""
    chosen = given or os.environ.get(DATA_VARIABLE) or Path(platformdirs.user_cache_dir(_APPLICATION)) / "data"
    return Path(chosen).expanduser().resolve()


def decoded_directory() -> Path:
    """Where decoded images are kept, in the user's cache directory: a data directory may be read-only."""
    return Path(platformdirs.user_cache_dir(_APPLICATION)) / "decoded"


def missing_file(name: str, path: Path, ways: str) -> ValueError:
    """The error for a file that is not where it was looked for.

    Args:
        name: Data set.
        path: The file.
        ways: How to get it, as the end of a sentence that begins with "Either".
    """
    return ValueError(
        f"data set {name!r}: no file {path}. Either {ways}. The data directory is --data-dir (data_dir=...), "
        f"else ${DATA_VARIABLE}, else {data_directory()}."
    )
