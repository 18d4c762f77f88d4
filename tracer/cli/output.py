"""The renderer that a command's options ask for."""

from __future__ import annotations

import sys

from tracer.render.base import Renderer


def renderer_for(as_json: bool) -> Renderer:
    if as_json:
        from tracer.render.json_lines import JsonRenderer
        return JsonRenderer(sys.stdout)
    from tracer.render.text import PlainConsole, TextRenderer
    return TextRenderer(PlainConsole())
