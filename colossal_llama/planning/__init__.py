"""What a training would need: memory, floating-point operations and time, from plain numbers alone."""
