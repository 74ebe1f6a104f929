"""Health check of the container: exit status 0 if the service is ready. It knows the settings in the environment."""

import os
import ssl
import sys
import urllib.request

# Its own service, by an address for which there is no certificate.
trusting = ssl.create_default_context()
trusting.check_hostname = False
trusting.verify_mode = ssl.CERT_NONE

scheme, port = "https" if os.environ.get("MSMLP_SSL_CERTFILE") else "http", os.environ.get("MSMLP_PORT") or "8000"
if metrics_port := os.environ.get("MSMLP_METRICS_PORT"):
    scheme, port = "http", metrics_port
try:
    urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/readyz", timeout=4, context=trusting).close()
except OSError as error:  # what urllib raises is one
    sys.exit(f"not ready: {error}")
