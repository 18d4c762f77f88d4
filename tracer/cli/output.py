"""The renderer that a command's options ask for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

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
