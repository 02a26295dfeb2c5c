"""The implementation of the SDK. `joey.client._sync` is generated from it (python -m joey.client.generate)."""
