"""Whether a recipe's model takes its pictures: `python -m fgtrain.trial < recipe.json`, before anything starts.

The network runs forward once, on tensors that have a shape and nothing else (torch's device "meta"): that takes no
memory, and less time than the imports. `fgtrain.sizes` measures more, and takes several times as long.
"""

from __future__ import annotations

import re
import sys

import torch

from fgtrain.errors import UserError
from fgtrain.freeze import train_mode
from fgtrain.parts import from_json
from fgtrain.recipe import Recipe
from fgtrain.sizes import built

REFUSED = 3
"""Exit status: the recipe cannot be trained, for the reason that was printed."""
_SAMPLES = 2  # BatchNorm may refuse a single one: `fgtrain.singles`

# Source: texts of ATen's and torch._meta_registrations' checks of shapes.
_SHAPES = re.compile(
    r"must match the size|attempting to broadcast|sizes of tensors must match|cannot be multiplied"
    r"|is invalid for input of size|is invalid for the number of elements"
    r"|kernel size can't be greater|output size is too small|expected input.* channels|padding size should be less"
    r"|stride argument|sum exactly|don't multiply up|must be divisible|not divisible|dimension out of range",
    re.IGNORECASE,
)


def refusal(recipe: Recipe) -> str | None:
    """Return why a recipe's model cannot be trained on its pictures: one line that names the field and the fix.

    None: it can, or that cannot be told without running it.
    """
    try:
        net = built(recipe)
    except UserError as error:
        return str(error)
    except Exception:  # whoever builds it to train will say so
        return None
    side = recipe.data.crop
    train_mode(net)
    try:
        with torch.no_grad():
            out = net(torch.empty(_SAMPLES, 3, side, side, device="meta"))
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        return _pictures(recipe, net, error) if is_refusal(error) else None
    if not isinstance(out, torch.Tensor) or out.shape != (_SAMPLES, recipe.model.classes):
        return f"model.name={recipe.model.name}: it does not give one score a class; take another model"
    return None


def is_refusal(error: Exception) -> bool:
    """Tell whether an exception, out of a forward pass without contents, is the network's own and comes of shapes."""
    text = str(error)
    if isinstance(error, NotImplementedError) or re.search(r"\bmeta\b", text):  # what needs contents, or has no kernel
        return False
    return not isinstance(error, RuntimeError) or bool(_SHAPES.search(text))


def _pictures(recipe: Recipe, net: torch.nn.Module, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    crop, (*_, made_for) = recipe.data.crop, getattr(net, "pretrained_cfg", {}).get("input_size") or (None,)
    resize = f" --set data.resize={made_for}" if made_for and made_for > recipe.data.resize else ""
    fix = f"--set data.crop={made_for}{resize}, or " if made_for and made_for != crop else ""
    return f"data.crop={crop}: {recipe.model.name} does not take such pictures ({reason}): {fix}take another model"


def main() -> int:
    """Read a recipe and print why it is refused, if it is."""
    if reason := refusal(from_json(sys.stdin.buffer.read(), Recipe)):
        print(reason)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
