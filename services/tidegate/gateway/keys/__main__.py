"""``python -m tidegate.gateway.keys new NAME``: makes an API key.

It prints the key, which nothing stores, and the entry for the file of keys, which does not tell it.
"""

import argparse
import hashlib
import secrets
import sys
from typing import Final

import yaml
from pydantic import ValidationError

from tidegate.gateway.keys.key_file import ApiKey

_PREFIX: Final = "tg-"
_BYTES: Final = 32


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tidegate.gateway.keys", description="Makes API keys of the gateway."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make a key, and print it once with its entry")
    new.add_argument("name", help="who gets it; letters, digits, dots, dashes and underscores")
    new.add_argument("--models", help="models that it may use, with commas; all unless given")
    new.add_argument("--requests-per-minute", type=int, help="no limit unless given")
    new.add_argument("--tokens-per-minute", type=int, help="no limit unless given")
    new.add_argument("--expires", help="day on which it ends (UTC), such as 2027-06-30")
    options = vars(parser.parse_args())
    del options["command"]
    if options["models"]:
        options["models"] = [each.strip() for each in options["models"].split(",")]
    key = _PREFIX + secrets.token_urlsafe(_BYTES)
    entry = {
        "name": options.pop("name"),
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        **{name: value for name, value in options.items() if value is not None},
    }
    try:
        ApiKey.model_validate(entry)
    except ValidationError as error:
        problem = error.errors()[0]
        parser.exit(2, f"{parser.prog}: {problem['loc'][0]}: {problem['msg']}\n")
    written = yaml.safe_dump({"keys": [entry]}, sort_keys=False).removeprefix("keys:\n")
    sys.stdout.write(
        f"The key, which is shown only now:\n\n    {key}\n\n"
        f"Its entry, below `keys:` in the file that --api-keys-file names:\n\n{written}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
