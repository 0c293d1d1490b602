"""A user's own file of attacks and rules, in this process and in every worker."""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Plugin:
    """A Python file that registers attacks, rules, networks, ... when it runs.

    The source travels, not the path: a worker on another machine need not have the file.

    Attributes:
        path: Where it was read from.
        source: Its text.
    """

    path: str
    source: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the source, hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def load(self) -> None:
        """Runs the file once a process.

        Raises:
            ValueError: The file fails; the message names the file, the line and the error.
        """
        name = f"optigrad_plugin_{self.checksum[:16]}"
        if name in sys.modules:
            return
        module = ModuleType(name)
        module.__file__ = self.path
        sys.modules[name] = module  # dataclasses and pickle look a class's module up here
        try:
            exec(compile(self.source, self.path, "exec"), module.__dict__)  # a plug-in is code that the user runs
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"plugin {self.path}{_line(error, self.path)}: {type(error).__name__}: {error}") from error
        except SystemExit as error:
            del sys.modules[name]
            raise ValueError(f"plugin {self.path} calls exit() when it is loaded; guard it with __main__") from error


def read_plugin(path: Path | str) -> Plugin:
    """Reads a plug-in file without running it.

    Raises:
        ValueError: It cannot be read, or is not text; or what is given is no path.
    """
    if not isinstance(path, str | os.PathLike):  # a file may hold anything
        raise ValueError(f"plugins must be paths of Python files, got {path!r}")
    try:
        return Plugin(str(path), Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"plugin {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"plugin {path} is not a Python file in UTF-8: {error}") from error


def _line(error: Exception, path: str) -> str:
    """``, line 7``: the last place in the plug-in itself that the error went through."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f", line {line}"
