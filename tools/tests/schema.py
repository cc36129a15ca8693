"""Prints for each element of a JSON list whether it follows a schema: true or false, a line each.

    schema.py SCHEMA LIST
"""

import json
import sys

from jsonschema import Draft202012Validator

schema, plans = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:])
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
for plan in plans:
    print("true" if validator.is_valid(plan) else "false")
