"""The main job on real input: a pretrained Llama starts to learn Chinese on one machine."""
