"""To be somebody without privileges."""

from __future__ import annotations

from typing import Final

# Nobody, but able to read root's folders: the interpreter under test may be in one.
AS_A_USER: Final = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"),
)
