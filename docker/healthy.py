"""Health check of the container: exit status 0 if the service is ready."""

import os
import sys
import urllib.error
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('MSMLP_PORT', '8000')}/readyz"
try:
    urllib.request.urlopen(url, timeout=4).close()
except (urllib.error.URLError, TimeoutError) as error:
    sys.exit(f"not ready: {error}")
