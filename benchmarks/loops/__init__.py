"""Training loops that are compared: each file is one rank's program, started by torchrun."""

from fgtrain.torchvision_compat import import_torchvision

import_torchvision()  # before a peer does it, who would not cope with one whose operators do not load
