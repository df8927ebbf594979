"""The error tree.

FglaunchError
├── UserError            the user can mend it: shown as one line, exit code 2
│   └── RecipeError      ... and it sits in a recipe or an override of one
├── StoreError           a store did not do what was asked
│   ├── KeyMissing       no object has this key
│   ├── KeyExists        a conditional create lost: the key is taken
│   └── StoreUnavailable the store could not be reached, or refused; worth another try
├── Refitted             memory ran out, and a restart will take smaller micro-batches: no failure
└── Corrupt              bytes that are not those that were written (checksum, size, format)
"""

from __future__ import annotations


class FglaunchError(Exception):
    """Anything this project raises on purpose."""


class UserError(FglaunchError):
    """Something the user can mend. The message is one line that names the field, the file and the fix."""


class RecipeError(UserError):
    """A recipe, or an override of one, that cannot be used."""


class Refitted(FglaunchError):
    """This rank ran out of memory; what was found to be too much is recorded, and a restart goes on with less."""


class StoreError(FglaunchError):
    """A store did not do what was asked."""


class KeyMissing(StoreError):
    """No object has this key."""


class KeyExists(StoreError):
    """A conditional create lost: an object with this key is there already."""


class StoreUnavailable(StoreError):
    """The store could not be reached or refused the request; the same call may succeed later."""


class Corrupt(FglaunchError):
    """Bytes that are not those that were written."""
