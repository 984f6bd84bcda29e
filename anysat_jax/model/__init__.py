"""The model: Linen modules, pure functions of their parameters, no input or output."""
