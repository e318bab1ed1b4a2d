"""API keys: a file of them, whose edits count without a restart, and the limits of each.

    keys:
      - name: team-a
        sha256: 0f4e…            # of the key; `python -m tidegate.gateway.keys new` makes one
        models: [smollm2]        # absent: every model
        requests_per_minute: 60  # absent: no limit
        tokens_per_minute: 20000 # absent: no limit
        expires: 2027-06-30      # absent: never
        disabled: false

The file holds no key, only their hashes. A key has 256 random bits, so a plain hash is enough: no
one can try them all.
"""
