"""The SDK's blocking face: generated from `joey.client._async`, except for net.py."""
