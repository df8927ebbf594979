"""Training loops that are compared: each file is one rank's program, started by torchrun."""
