"""Outputs: one module each, all with the methods of `tracer.render.base.Renderer`."""
