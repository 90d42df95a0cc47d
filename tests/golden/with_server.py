#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run a command against a fresh server: with_server.py MODEL [SERVER ARGS] -- COMMAND [ARGS, {url} filled in].

The exit code is the command's, or 70 when the server did not start or did not end cleanly by itself.
"""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
import pressd  # noqa: E402


def main():
    cut = sys.argv.index("--")
    model, args, command = sys.argv[1], sys.argv[2:cut], sys.argv[cut + 1:]
    server = pressd.Server(model, *args)
    try:
        server.start()
        url = f"http://127.0.0.1:{server.port}"
        code = subprocess.run([a.replace("{url}", url) for a in command]).returncode
        alive = server.process.poll() is None
        tail = server.log_tail()
        ended = server.stop()
    except pressd.ServerDied as e:
        print(e, file=sys.stderr)
        return 70
    finally:
        server.kill()
    if not alive or ended != 0:
        print(f"pressd {'ended on its own' if not alive else 'did not end well'}: exit {ended}\n{tail}", file=sys.stderr)
        return 70
    return code


if __name__ == "__main__":
    sys.exit(main())
