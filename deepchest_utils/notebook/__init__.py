"""Tools for notebooks: figures, controls that redraw them, and a runner without a screen."""
