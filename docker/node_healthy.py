#!/opt/xgen-ray/bin/python -IS
"""Exit 0 when Ray's agent on this node says that the node lives, and on a head that the cluster does.

For HEALTHCHECK and for Kubernetes' probes; the agent answers this one question without a token.
"""

import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:52365/api/healthz"

try:
    with urllib.request.urlopen(URL, timeout=5) as answer:
        sys.exit(0 if answer.status == 200 else 1)
except (OSError, urllib.error.URLError) as error:
    sys.stderr.write(f"{URL}: {error}\n")
    sys.exit(1)
