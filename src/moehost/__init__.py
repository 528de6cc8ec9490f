"""moehost provisions homelab machines to serve 400B-class mixture-of-experts models."""
