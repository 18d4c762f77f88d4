"""The renderer and the file that a command's options ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tracer.errors import UserError
from tracer.render.base import Renderer

if TYPE_CHECKING:
    from tracer.render.json_lines import LiveJsonRenderer
    from tracer.render.live import LiveRenderer


def renderer_for(as_json: bool) -> Renderer:
    if as_json:
        from tracer.render.json_lines import JsonRenderer
        return JsonRenderer(sys.stdout)
    from tracer.render.text import PlainConsole, TextRenderer
    return TextRenderer(PlainConsole())


def live_renderer_for(as_json: bool, verbose: bool) -> LiveRenderer | LiveJsonRenderer:
    if as_json:
        from tracer.render.json_lines import LiveJsonRenderer
        return LiveJsonRenderer(sys.stdout)
    from tracer.render.live import LiveRenderer
    from tracer.render.text import PlainConsole
    return LiveRenderer(PlainConsole(), verbose)


@contextmanager
def target_file(path: str | None, force: bool) -> Iterator[Any]:
    """Standard output, or a new file for its owner's eyes."""
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL), 0o600)
    except FileExistsError:
        raise UserError(f"{path} exists: choose another name, or add --force to replace it.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with open(file, "w", encoding="utf-8") as opened:
            yield opened
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
