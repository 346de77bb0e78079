"""What notebooks need: figures, controls to move, and a runner without a screen."""
