"""Speed and memory of training steps: this project's loop, and others on the same model, rows and precision."""
